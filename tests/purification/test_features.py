"""Activation maximisation against networks whose best image is known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from bessemer.errors import ImagesError, UsageError
from bessemer.models import DigitsNet
from bessemer.purification.features import Regularise, maximise, responses

SHAPE = (2, 6, 6)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def flat(units=5, scale=1.0):
    """A linear layer on pixels: the gradient of unit i is its own weight, everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, units), nn.ReLU())
    model[1].weight.data *= scale
    return model


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1))


def test_a_linear_neuron_shows_its_weight_at_the_contrast_asked_for():
    model = flat()
    images = maximise(model, "1", [3, 0], SHAPE, steps=600, step_size=0.001, decay=0.02)
    weights = model[1].weight[[3, 0]].view(2, *SHAPE)
    torch.testing.assert_close(cosine(images - 0.5, weights), torch.ones(2), atol=1e-4, rtol=0)
    contrast = (images - 0.5).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(contrast, torch.full((2,), 0.05), atol=1e-4, rtol=0)


def test_the_steps_are_those_of_the_equation():
    model, start = flat(), torch.rand(SHAPE)
    expected = start.double() - 0.5
    weight = model[1].weight[2].view(SHAPE).double()
    for _ in range(7):
        expected = (0.9 * expected + 0.01 * np.sqrt(72) * weight / weight.norm()).clamp(-0.5, 0.5)
    images = maximise(model, "1", [2], start, steps=7, step_size=0.01, decay=0.1)
    torch.testing.assert_close(images[0].double(), 0.5 + expected, atol=1e-6, rtol=0)


def test_networks_of_another_scale_are_seen_alike():
    plain, loud = flat(), flat(scale=1e-20)
    loud.load_state_dict({name: value * 1e-20 for name, value in plain.state_dict().items()})
    torch.testing.assert_close(maximise(plain, "1", [1], SHAPE, steps=50), maximise(loud, "1", [1], SHAPE, steps=50))


def test_a_filter_appears_at_the_centre():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    images = maximise(model, "0", range(4), (1, 9, 9), steps=600, step_size=0.001)
    expected = torch.zeros(4, 1, 9, 9)
    expected[:, :, 3:6, 3:6] = model[0].weight.detach()
    torch.testing.assert_close(cosine(images - 0.5, expected), torch.ones(4), atol=1e-4, rtol=0)


def test_units_do_not_know_of_one_another():
    model = DigitsNet()
    together = maximise(model, "conv2", [5, 9, 60], steps=5, seed=3)
    torch.testing.assert_close(together[1:2], maximise(model, "conv2", [9], steps=5, seed=3))
    start = maximise(model, "conv2", [9], steps=0, seed=3)
    other = maximise(DigitsNet(), "conv2", [9], steps=0, seed=3)
    assert torch.equal(start, other)
    assert not torch.equal(start, maximise(model, "conv2", [9], steps=0, seed=4))


def test_more_units_than_climb_at_once(monkeypatch):
    model = DigitsNet()
    whole = maximise(model, "conv1", range(7), steps=3)
    monkeypatch.setattr("bessemer.purification.features.CHUNK", 3)
    torch.testing.assert_close(maximise(model, "conv1", range(7), steps=3), whole)


def test_responses_are_the_layers_own():
    model, images = DigitsNet(), torch.rand(3, 1, 8, 8)
    expected = model.conv2(model.pool(model.relu(model.conv1(images))))
    torch.testing.assert_close(responses(model, "conv2", images), expected[:, :, 2, 2].detach())
    torch.testing.assert_close(responses(model, "ip2", images), model(images).detach())


def test_climbing_raises_the_activation():
    model = DigitsNet()
    before = responses(model, "conv2", maximise(model, "conv2", range(20), steps=0)).diagonal()
    after = responses(model, "conv2", maximise(model, "conv2", range(20), steps=60)).diagonal()
    assert (after > before).all()


def test_the_model_comes_back_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5))
    model[0].weight.requires_grad_(False)
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    maximise(model, "1", [0, 2], (1, 5, 5), steps=3)
    assert torch.equal(torch.rand(1), expected)
    with pytest.raises(UsageError):
        maximise(model, "1", [3], (1, 5, 5))
    assert [module.training for module in model] == [True, True, True, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_blur_is_scipys():
    images = torch.rand(2, 3, 12, 10, dtype=torch.float64)
    expected = gaussian_filter(images.numpy(), (0, 0, 0.8, 0.8), mode="mirror", radius=(0, 0, 3, 3))
    regularise = Regularise(blur=0.8, every=2)
    np.testing.assert_allclose(regularise.blurred(images, 1).numpy(), expected, atol=1e-12)
    assert torch.equal(regularise.blurred(images, 2), images)


def test_jitter_moves_within_its_reach_and_repeats():
    regularise, like = Regularise(jitter=2), torch.zeros(1)
    shifts = [regularise.shift(step, 5, like) for step in range(200)]
    assert {down for down, _ in shifts} == {right for _, right in shifts} == {-2, -1, 0, 1, 2}
    assert len(set(shifts)) == 25
    assert regularise.shift(7, 5, like) == shifts[7]


def test_regularised_images_are_smoother():
    model = DigitsNet()

    def roughness(images):
        return images.diff(dim=3).square().mean()

    plain = maximise(model, "conv2", range(8), steps=40)
    smooth = maximise(model, "conv2", range(8), steps=40, regularise=Regularise())
    assert roughness(smooth) < 0.7 * roughness(plain)


@pytest.mark.parametrize(
    ("layer", "units", "message"),
    [
        ("conv3", [0], "did you mean 'conv[12]'"),
        ("conv1", [32], "units 0 to 31, but unit 32"),
        ("conv1", [-1], "units 0 to 31, but unit -1"),
        ("relu", [0], "called 3 times in one pass"),
    ],
)
def test_what_is_not_there_is_refused(layer, units, message):
    with pytest.raises(UsageError, match=message):
        maximise(DigitsNet(), layer, units)


def test_layers_that_give_no_tensor_of_units_are_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.whole, self.idle = Pair(), Whole(), nn.Identity()

        def forward(self, images):
            return self.whole(self.pair(images)[0])

    class Pair(nn.Module):
        def forward(self, images):
            return images, images

    class Whole(nn.Module):
        def forward(self, images):
            return images.sum()

    for layer, message in (("pair", "of type tuple"), ("whole", r"of shape \(\)"), ("idle", "called 0 times")):
        with pytest.raises(UsageError, match=message):
            maximise(Odd(), layer, [0], SHAPE)


def test_a_start_must_fit():
    with pytest.raises(UsageError, match="give a start"):
        maximise(flat(), "1", [0])
    with pytest.raises(ImagesError, match="should lie in"):
        maximise(flat(), "1", [0], torch.full(SHAPE, 2.0))
    with pytest.raises(ImagesError, match="one image"):
        maximise(flat(), "1", [0], torch.rand(6, 6))
    with pytest.raises(ImagesError, match="one per unit"):
        maximise(flat(), "1", [0, 1], torch.rand(3, *SHAPE))
    with pytest.raises(UsageError, match="decay between 0 and 1"):
        maximise(flat(), "1", [0], SHAPE, decay=2)
    with pytest.raises(UsageError, match="jitter"):
        Regularise(jitter=-1)
