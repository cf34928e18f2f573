"""Uniform noise: points of the ball, drawn blindly.

The weakest attack there is, and the floor under all others of the same ball: where it turns more images than one that
follows gradients, the gradients are masked (Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of
security", 2018, section 3.1).
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
class UniformNoise(Attack):
    """A random point of the ball around each image; the first of `draws` that succeeds, or else the last."""

    threat: Threat
    draws: int = 1

    kind: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UsageError(f"UniformNoise needs at least 1 draw, found {self.draws}")

    def passes(self, classes: int) -> tuple[int, int]:
        """A forward pass a draw."""
        return self.draws, 0

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Points of the ball, keyed by seed, draw and image."""

        def draw(number: int, rows: Tensor) -> Images:
            return self.threat.sample(images[rows], randomness.subseed(seed, number), index[rows])

        return best_of(self.draws, oracle, images, draw)
