"""Rotations and shifts: what no pixel ball holds, and every camera does.

    (u', v') = (cos θ · u − sin θ · v + δu,  sin θ · u + cos θ · v + δv),   |θ| ≤ rotation, |δu|, |δv| ≤ translation

moves the pixel at (u, v), counted from the middle (Engstrom, Tran, Tsipras, Schmidt and Madry, "Exploring the landscape
of spatial robustness", 2019, section 3). Values between pixels are interpolated bilinearly, and black comes in from
outside. Gradients lead nowhere in this landscape (section 4), so the whole grid is tried; forward passes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bessemer.attacks.attack import Attack, Images, Oracle, WorstSeen
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import margin
from bessemer.errors import ImagesError, UsageError


@dataclass(frozen=True)
class Spatial(Attack):
    """The worst of all rotations and shifts on a grid: those that fool the model first, then by the margin.

    rotation: the largest angle, in degrees. translation: the longest shift along each axis, in pixels. rotations,
    translations: how many values of each, evenly spread over both signs; an odd number includes none at all, and 1 is
    only that. Images are (N, C, H, W), else `ImagesError`. Raises `UsageError` for settings that cannot be.
    """

    rotation: float = 30.0
    translation: float = 3.0
    rotations: int = 31
    translations: int = 5

    kind: ClassVar[str] = "spatial"

    def __post_init__(self) -> None:
        if not (0 <= self.rotation <= 180 and 0 <= self.translation < math.inf):
            raise UsageError(
                f"Spatial needs a rotation of 0 to 180 degrees and a translation of 0 pixels or more, "
                f"found {self.rotation} and {self.translation}"
            )
        if self.rotations < 1 or self.translations < 1:
            raise UsageError(
                f"Spatial needs at least 1 rotation and 1 translation, found {self.rotations} and {self.translations}"
            )

    def passes(self, classes: int) -> tuple[int, int]:
        """A forward pass for each point of the grid."""
        return self.rotations * self.translations**2, 0

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Point after point of the grid."""
        if images.dim() != 4:
            raise ImagesError(f"Spatial needs images of shape (N, C, H, W), not {tuple(images.shape)}")
        angles, shifts = _spread(self.rotation, self.rotations), _spread(self.translation, self.translations)
        worst = WorstSeen(oracle, images, until_success)
        for angle, across, down in product(angles, shifts, shifts):
            rows = worst.open
            if rows is not None and not len(rows):
                break
            moved = rotated_and_shifted(images if rows is None else images[rows], angle, across, down)
            logits = oracle.logits(moved, rows)
            worst.offer(moved, logits, margin(goal.at(rows), logits), rows)
        return worst.images


def _spread(largest: float, count: int) -> list[float]:
    return [0.0] if count == 1 else [largest * (2 * i / (count - 1) - 1) for i in range(count)]


def rotated_and_shifted(images: Images, degrees: float, across: float, down: float) -> Images:
    """Images (N, C, H, W), turned by an angle from the first towards the second image axis, then shifted in pixels."""
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # where each pixel comes from: the inverse, in torch's units, in which half a side is 1
    inverse = [
        [cos, sin * height / width, -2 / width * (cos * across + sin * down)],
        [-sin * width / height, cos, -2 / height * (cos * down - sin * across)],
    ]
    theta = torch.tensor([inverse], dtype=images.dtype, device=images.device)
    grid = functional.affine_grid(theta, [1, 1, height, width], align_corners=False)
    sampled = functional.grid_sample(
        images, grid.expand(len(images), -1, -1, -1), "bilinear", "zeros", align_corners=False
    )
    return sampled.clamp_(0, 1)
