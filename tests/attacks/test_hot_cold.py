"""Hot/cold's variants: along the sign, and beyond the boundary (hard positives)."""

import pytest
import torch
from torch import nn

from bessemer.attacks import HotCold
from bessemer.errors import UsageError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).eval()


@pytest.fixture(scope="module")
def batch(model):
    images = (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    return images, model(images).argmax(1)


def naive_direction(model, image, label):
    """J_h(x)^T w, written out for one image."""
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[0], image[None])[:, 0]
    logits = model(image[None])[0]
    hot = next(int(k) for k in logits.argsort(descending=True) if k != label)
    return (logits[hot].abs() * jacobian[hot] - logits[label] * jacobian[label]).detach()


def on_the_ray(image, direction, scales):
    return ((image * 255).round() + scales[:, None, None, None] * direction).round().clamp(0, 255) / 255


def first_scale(model, image, label, direction, step=0.01):
    """The smallest scale whose rounded image is misclassified, by trying them all."""
    scales = torch.arange(0, 512, step)
    fooled = model(on_the_ray(image, direction, scales)).argmax(1) != label
    crossings = int((fooled[1:] & ~fooled[:-1]).sum())
    return (scales[fooled.nonzero()[0, 0]], crossings) if fooled.any() else (None, crossings)


def test_the_sign_takes_the_place_of_the_direction(model, batch):
    images, labels = batch
    found = HotCold(sign=True)(model, images, labels)
    looked_at = 0
    for image, label, one in zip(images, labels, found, strict=True):
        sign = naive_direction(model, image, label).sign()
        scale, crossings = first_scale(model, image, label, sign, step=1.0)
        if crossings == 1:  # elsewhere bisection may settle on a later crossing
            expected = on_the_ray(image, sign, scale[None])[0]
            levels = [int(((x - image) * 255).round().abs().max()) for x in (one, expected)]
            assert levels[0] == levels[1]
            # at a scale of a half, even levels round one way and odd ones the other: such an image may be the nearest
            torch.testing.assert_close(one, expected, rtol=0, atol=1.01 / 255)
            looked_at += 1
    assert looked_at > 10
    plain = HotCold()(model, images, labels)
    assert (found - images).abs().amax() < (plain - images).abs().amax()


@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("overshoot", [1.05, 1.5])
def test_hard_positives_lie_further_along_the_same_ray(overshoot, sign, model, batch):
    images, labels = batch
    found = HotCold(overshoot=overshoot, sign=sign)(model, images, labels)
    exact = looked_at = 0
    for image, label, one in zip(images, labels, found, strict=True):
        direction = naive_direction(model, image, label)
        direction = direction.sign() if sign else direction / direction.abs().max()
        scale, crossings = first_scale(model, image, label, direction)
        if crossings != 1:
            continue
        expected = on_the_ray(image, direction, overshoot * scale[None])[0]
        if model(expected[None]).argmax(1) == label:
            continue
        # the scan knows the scale to 0.01, which may round a pixel the other way
        torch.testing.assert_close(one, expected, rtol=0, atol=1.01 / 255)
        exact += int((one == expected).sum())
        looked_at += 1
    assert looked_at > 10
    assert exact > 0.97 * 16 * looked_at
    nearest = HotCold(sign=sign)(model, images, labels)
    assert (model(found).argmax(1) != labels).sum() == (model(nearest).argmax(1) != labels).sum()


def test_a_hard_positive_that_is_right_again_falls_back_to_the_nearest():
    """Wrong only between 40 and 60 grey levels: three times as far is right once more."""

    def model(x):
        level = x.flatten(1)[:, :1] * 255
        return torch.cat([torch.full_like(level, 4.0), 5 - (level - 50).abs() / 10], 1)

    images = torch.full((1, 1, 1, 2), 30 / 255)
    label = torch.tensor([0])
    near = HotCold()(model, images, label)
    assert (near[0, 0, 0, 0] * 255).round() == 41
    assert torch.equal(HotCold(overshoot=3.0)(model, images, label), near)
    beyond = HotCold(overshoot=1.2)(model, images, label)
    assert (beyond[0, 0, 0, 0] * 255).round() > (near[0, 0, 0, 0] * 255).round()


def test_no_more_passes_than_announced(model, batch):
    for attack in (HotCold(sign=True), HotCold(overshoot=1.05)):
        outcome = attack.run(model, *batch)
        assert outcome.forwards.max() <= attack.passes(5)[0]


def test_an_image_that_cannot_be_turned_comes_back(batch):
    images, _ = batch

    def model(x):
        return torch.tensor([3.0, 1.0, 0.0]) + 1e-6 * x.flatten(1)[:, :3]

    labels = torch.zeros(len(images), dtype=torch.int64)
    assert torch.equal(HotCold(overshoot=1.1, sign=True)(model, images, labels), images)


@pytest.mark.parametrize("overshoot", [0.9, float("nan"), float("inf")])
def test_an_overshoot_must_go_beyond(overshoot):
    with pytest.raises(UsageError, match="overshoot from 1"):
        HotCold(overshoot=overshoot)
