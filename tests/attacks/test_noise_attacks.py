"""Random draws: from the whole ball, the first that succeeds, and blind to everything else."""

import pytest
import torch

from bessemer.attacks.uniform_noise import UniformNoise
from bessemer.errors import UsageError
from bessemer.randomness import subseed
from bessemer.threat import L1, L2, Linf

THREATS = [Linf(0.2), L2(1.0), L1(4.0)]


def model(images):
    """Wrong where the first pixel is above a half."""
    first = images.flatten(1)[:, :1] - 0.5
    return torch.cat([-first, first], 1)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_a_draw_is_the_threats_own_sample(threat):
    images = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4
    found = UniformNoise(threat)(model, images, torch.zeros(30).long(), seed=4)
    assert torch.equal(found, threat.sample(images, subseed(4, 0), torch.arange(30)))
    assert threat.size(found - images).max() <= threat.eps + 1e-6


def test_linf_noise_is_uniform():
    images = torch.full((4, 1, 100, 100), 0.3)
    found = UniformNoise(Linf(0.1))(model, images, torch.zeros(4).long())
    change = ((found - images) / 0.1).flatten().sort().values
    expected = torch.linspace(-1, 1, len(change))
    assert (change - expected).abs().max() < 0.02, "Kolmogorov's distance of 40,000 draws stays under 0.01"


def test_the_first_draw_that_succeeds_stands_and_else_the_last():
    images = torch.full((200, 1, 1, 3), 0.45)
    labels = torch.zeros(200).long()
    outcome = UniformNoise(Linf(0.1), draws=3).run(model, images, labels, seed=1)
    for i in range(200):
        draws = [Linf(0.1).sample(images[i : i + 1], subseed(1, draw), torch.tensor([i])) for draw in range(3)]
        wrong = [bool(model(draw).argmax(1)) for draw in draws]
        number = wrong.index(True) if any(wrong) else 2
        assert torch.equal(outcome.images[i : i + 1], draws[number])
        assert outcome.forwards[i] == number + 1
    assert set(outcome.forwards.tolist()) == {1, 2, 3}


def test_more_draws_turn_every_image_that_fewer_turn():
    images, labels = torch.full((100, 1, 1, 3), 0.42), torch.zeros(100).long()
    few, many = (model(UniformNoise(Linf(0.1), draws)(model, images, labels)).argmax(1) for draws in (1, 8))
    assert not ((few == 1) & (many == 0)).any()
    assert few.sum() < many.sum()


def test_real_vectors_need_no_box():
    images = torch.full((5, 8), -3.0)
    threat = Linf(2.0, box=None)
    found = UniformNoise(threat)(model, images, torch.zeros(5).long())
    assert found.min() < -3
    assert threat.size(found - images).max() <= 2


def test_a_target_counts_as_the_goal():
    images, labels = torch.full((50, 1, 1, 3), 0.45), torch.zeros(50).long()
    found = UniformNoise(Linf(0.1), draws=6)(model, images, labels, target=labels + 1)
    assert torch.equal(found, UniformNoise(Linf(0.1), draws=6)(model, images, labels))


def test_at_least_one_draw():
    with pytest.raises(UsageError, match="at least 1 draw"):
        UniformNoise(Linf(0.1), draws=0)
