"""The universal attack: one direction for all inputs, which no training is needed to find.

    x' = x − y · eps · M w* / ‖M w*‖

Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190: a network that relies on dense mixtures falls to it,
since along it the label's whole signal is gathered, and no clean input has much of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bessemer.attacks import Attack
from bessemer.attacks.attack import Images, Oracle
from bessemer.attacks.goal import Goal
from bessemer.threat import Threat


@dataclass(frozen=True, eq=False)
class DenseDirection(Attack):
    """A full step against the label along one direction, of length 1 in the threat's norm; asks the model nothing.

    Labels are 0 (y = −1) and 1 (y = +1).
    """

    threat: Threat
    direction: Float[Tensor, " d"]

    kind: ClassVar[str] = "bounded"

    def passes(self, classes: int) -> tuple[int, int]:
        """None."""
        return 0, 0

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """One step for all."""
        direction = self.direction.to(images)
        step = self.threat.eps * direction / self.threat.size(direction[None])
        return images - torch.where(goal.labels == 1, 1.0, -1.0).to(images)[:, None] * step
