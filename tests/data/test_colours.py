"""Colour changes of a batch, against the published formulas carried out image by image in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bessemer.data import Augmentation, colours
from bessemer.errors import UsageError

IMAGES = torch.rand(30, 3, 6, 5, generator=torch.Generator().manual_seed(0))
INDEX = torch.arange(200, 230)

# the principal colours of ImageNet as fb.resnet.torch prints them: an eigenvalue and its eigenvector a line
PRINCIPAL = [
    (0.2175, (-0.5675, -0.5808, -0.5836)),
    (0.0188, (0.7192, -0.0045, -0.6948)),
    (0.0045, (0.4009, -0.8140, 0.4203)),
]


def naive(image, factors, light, order):
    """One image (3, H, W), one change after the other, pixel by pixel."""
    image = image.copy()
    channels, height, width = image.shape
    for change in order:
        before = image.copy()
        grey = 0.299 * before[0] + 0.587 * before[1] + 0.114 * before[2]
        for channel in range(channels):
            mean = before[channel].sum() / (height * width)
            for row in range(height):
                for column in range(width):
                    pixel = before[channel, row, column]
                    if change == 0:
                        pixel = factors[0] * pixel
                    elif change == 1:
                        pixel = (pixel - mean) * factors[1] + mean
                    elif change == 2:
                        pixel = factors[2] * pixel + (1 - factors[2]) * grey[row, column]
                    else:
                        pixel += sum(
                            a * value * vector[channel] for a, (value, vector) in zip(light, PRINCIPAL, strict=True)
                        )
                    image[channel, row, column] = pixel
    return image.clip(0, 1)


@pytest.mark.parametrize(("jitter", "lighting"), [(0.4, 0.1), (0.4, 0.0), (0.0, 0.1), (1.0, 2.0)])
def test_colours_change_as_the_formulas_say_in_each_images_own_order(jitter, lighting):
    factors, light, number = (drawn.numpy() for drawn in colours.draws(jitter, lighting, 5, INDEX))
    expected = [
        naive(image, *drawn)
        for image, drawn in zip(
            IMAGES.double().numpy(), zip(factors, light, [colours.ORDERS[n] for n in number], strict=True), strict=True
        )
    ]
    changed = Augmentation(jitter=jitter, lighting=lighting)(IMAGES, 5, INDEX)
    np.testing.assert_allclose(changed.numpy(), np.stack(expected), rtol=0, atol=2e-6)
    assert not torch.equal(changed, IMAGES)


def test_the_order_matters_and_every_order_is_drawn():
    factors, light, number = colours.draws(0.4, 0.1, 0, torch.arange(5000))
    counts = number.bincount(minlength=24)
    assert ((counts - 5000 / 24).abs() < 5 * (5000 / 24) ** 0.5).all()
    image = IMAGES[0].double().numpy()
    results = {naive(image, factors[0].numpy(), light[0].numpy(), order).tobytes() for order in colours.ORDERS}
    assert len(results) > 6
    assert len(set(colours.ORDERS)) == 24


def test_factors_and_light_have_the_published_spread():
    factors, light, _ = colours.draws(0.4, 0.1, 1, torch.arange(20_000))
    assert factors.min() > 0.6
    assert factors.max() < 1.4
    assert ((factors.mean(0) - 1).abs() < 0.005).all()
    assert ((factors.std(0) - 0.8 / 12**0.5).abs() < 0.005).all()
    assert ((light.std(0) - 0.1).abs() < 0.002).all()
    together = torch.corrcoef(torch.cat([factors, light], 1).T) - torch.eye(6)
    assert together.abs().max() < 0.03


def test_splitting_a_batch_or_reordering_it_changes_no_colour():
    augmentation = Augmentation(jitter=0.4, lighting=0.1, flip=True)
    whole = augmentation(IMAGES, 3, INDEX)
    parts = [augmentation(IMAGES[part], 3, INDEX[part]) for part in (slice(0, 1), slice(1, 20), slice(20, 30))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole.flip(0), augmentation(IMAGES.flip(0), 3, INDEX.flip(0)))


def test_nothing_drawn_leaves_the_images_as_they_are():
    assert torch.equal(Augmentation()(IMAGES, 0, INDEX), IMAGES)
    torch.testing.assert_close(colours.changed(IMAGES, 0, 0, 0, INDEX), IMAGES, rtol=0, atol=1e-7)


def test_grey_images_have_no_colours_to_change():
    with pytest.raises(UsageError, match="these images have 1 channels"):
        Augmentation(lighting=0.1)(IMAGES[:, :1], 0, INDEX)


@pytest.mark.parametrize("settings", [{"jitter": -0.1}, {"jitter": 1.5}, {"lighting": -1}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(UsageError, match="jitter should lie in 0 … 1 and lighting cannot be negative"):
        Augmentation(**settings)
