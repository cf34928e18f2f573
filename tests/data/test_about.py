"""The exact moments of uint8 images, against floating point."""

from __future__ import annotations

import pytest
import torch

from bessemer.data import Split
from bessemer.data.about import moments


def test_moments_are_those_of_all_pixels_together():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 5, 7), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 3
    labels = torch.zeros(30, dtype=torch.int64)
    mean, deviation = moments(Split(images[:20], labels[:20]), Split(images[20:], labels[20:]))
    pixels = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-12)
    assert deviation == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-12)
