"""The grid of rotations and shifts, against SciPy and against trying it all by hand."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from torch import nn

from bessemer.attacks.spatial import Spatial, rotated_and_shifted
from bessemer.errors import ImagesError, UsageError


def by_scipy(image, degrees, across, down):
    """The paper's equation, inverted pixel by pixel in SciPy's (row, column) coordinates."""
    height, width = image.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    forward = np.array([[cos, sin], [-sin, cos]])  # (v, u) -> (v', u') where u' = cos u - sin v, v' = sin u + cos v
    inverse = np.linalg.inv(forward)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = middle - inverse @ (middle + np.array([down, across]))
    return affine_transform(image, inverse, offset, order=1, mode="grid-constant", cval=0.0)


@pytest.mark.parametrize("shape", [(8, 8), (9, 6), (5, 12)])
@pytest.mark.parametrize("move", [(0, 0, 0), (30, 0, 0), (0, 2, 0), (0, 0, -1.5), (-17, 1.5, -2), (90, 0.5, 1)])
def test_moves_pixels_as_scipy_does(shape, move):
    images = torch.rand(3, 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = rotated_and_shifted(images, *move)
    for i, channel in product(range(3), range(2)):
        expected = by_scipy(images[i, channel].numpy(), *move)
        np.testing.assert_allclose(moved[i, channel].numpy(), expected, rtol=0, atol=1e-9)


def test_a_whole_pixel_to_the_right_and_a_quarter_turn_are_what_they_say():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 3] = 1  # to the right of the middle
    shifted = rotated_and_shifted(image, 0, 1, 0)
    assert shifted[0, 0, 2, 4] == pytest.approx(1)
    turned = rotated_and_shifted(image, 90, 0, 0)
    assert turned[0, 0, 3, 2] == pytest.approx(1, abs=1e-5), "u goes to v: below the middle"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
    model[1].bias.data -= model[1].weight.data.sum(1) / 2  # grey is in the middle of all classes
    return model


@pytest.fixture(scope="module")
def batch(model):
    images = torch.rand(16, 1, 7, 7, generator=torch.Generator().manual_seed(1))
    return images, model(images).argmax(1)


@pytest.mark.parametrize("attack", [Spatial(12, 1, 3, 3), Spatial(14, 1, 4, 2)], ids=repr)
def test_returns_the_worst_point_of_the_grid(attack, model, batch):
    images, labels = batch
    found = attack(model, images, labels)
    angles = np.linspace(-attack.rotation, attack.rotation, attack.rotations)
    shifts = np.linspace(-attack.translation, attack.translation, attack.translations)
    fallen = 0
    for image, label, one in zip(images, labels, found, strict=True):
        points = [
            torch.tensor(by_scipy(image[0].numpy().astype(np.float64), *move), dtype=torch.float32)[None, None]
            for move in product(angles, shifts, shifts)
        ]
        logits = [model(point)[0] for point in points]
        # a point that fools has a positive margin, so that the largest margin settles both
        margins = [max(z[k] for k in range(4) if k != label) - z[label] for z in logits]
        worst = max(range(len(points)), key=lambda i: margins[i])
        torch.testing.assert_close(one, points[worst][0], rtol=0, atol=1e-5)
        fallen += margins[worst] > 0
    assert 0 < fallen < 16


def test_leaving_early_finds_the_same_images_with_fewer_passes(model, batch):
    attack = Spatial(30, 1, 5, 3)
    stayed, left = (attack.run(model, *batch, until_success=early) for early in (False, True))
    assert torch.equal(model(stayed.images).argmax(1), model(stayed.images).argmax(1))
    assert torch.equal(model(stayed.images).argmax(1) == batch[1], model(left.images).argmax(1) == batch[1])
    assert set(stayed.forwards.tolist()) == {attack.passes(4)[0]} == {45}
    assert left.forwards.min() < 45
    assert not stayed.backwards.any()


def test_a_single_value_moves_nothing(model, batch):
    images, labels = batch
    found = Spatial(30, 3, rotations=1, translations=1)(model, images, labels)
    torch.testing.assert_close(found, images, rtol=0, atol=1e-6)


def test_needs_no_gradient_and_reaches_a_target(batch):
    """A model with integer arithmetic inside: the brightest column is the class."""
    images = torch.zeros(3, 1, 7, 7)
    images[:, :, :, 3] = 1

    def columns(x):
        return (x.sum((1, 2)) * 100).long().float()[:, 2:5]

    target = torch.tensor([0, 2, 2])
    found = Spatial(0, 1, rotations=1, translations=3)(columns, images, torch.ones(3).long(), target=target)
    assert torch.equal(columns(found).argmax(1), target)


def test_what_cannot_be_is_refused():
    for wrong in (
        {"rotation": -1},
        {"rotation": 200},
        {"translation": -1},
        {"translation": math.inf},
        {"rotations": 0},
        {"translations": 0},
    ):
        with pytest.raises(UsageError):
            Spatial(**wrong)
    with pytest.raises(ImagesError, match=r"N, C, H, W"):
        Spatial()(lambda x: x, torch.rand(2, 3), torch.zeros(2).long())
