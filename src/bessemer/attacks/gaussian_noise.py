"""Gaussian noise: what happens when nobody attacks and the pixels merely shake.

Every white-box attack of the same size must beat it; where noise does better, the gradients are masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bessemer import randomness
from bessemer.attacks.attack import Attack, Images, Oracle
from bessemer.attacks.draws import best_of
from bessemer.attacks.goal import Goal
from bessemer.errors import UsageError
from bessemer.threat import Threat


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Independent noise on every pixel, clipped to [0, 1]; the first of `draws` that succeeds, or else the last.

    std: in [0, 1] units; BANG's 100 grey levels are 100/255. threat: a ball that draws are brought back into, for a
    fair comparison with an attack of the same size.
    """

    std: float
    draws: int = 1
    threat: Threat | None = None

    kind: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        if not self.std >= 0 or self.draws < 1:
            raise UsageError(f"GaussianNoise needs std ≥ 0 and at least 1 draw, found {self.std} and {self.draws}")

    def passes(self, classes: int) -> tuple[int, int]:
        """A forward pass a draw."""
        return self.draws, 0

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Noise keyed by seed, draw and image."""

        def draw(number: int, rows: Tensor) -> Images:
            shape, own = tuple(images.shape[1:]), randomness.subseed(seed, number)
            noisy = images[rows] + self.std * randomness.normal(shape, own, index[rows], images.dtype)
            return noisy.clamp(0, 1) if self.threat is None else self.threat.project(noisy, images[rows])

        return best_of(self.draws, oracle, images, draw)
