"""Gaussian noise: what happens when nobody attacks and the pixels merely shake.

Every white-box attack of the same size must beat it; where noise does better, the gradients are masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bessemer import randomness
from bessemer.attacks.attack import Attack, Images, Oracle
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
        """Draw after draw, for the images that no draw has turned yet."""
        found = images.clone()
        rows = torch.arange(len(images), device=images.device)
        for draw in range(self.draws):
            noise = randomness.normal(
                tuple(images.shape[1:]), randomness.subseed(seed, draw), index[rows], images.dtype
            )
            candidate = images[rows] + self.std * noise
            candidate = candidate.clamp(0, 1) if self.threat is None else self.threat.project(candidate, images[rows])
            found[rows] = candidate
            rows = rows[~oracle.reached(candidate, oracle.logits(candidate, rows), rows)]
            if not len(rows):
                break
        return found
