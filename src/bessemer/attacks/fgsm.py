"""The fast gradient method: one step of full size along the steepest direction of the loss.

    x' = x + eps · argmax_{|d| ≤ 1} ⟨d, ∇_x E⟩

For Linf the direction is the sign (FGSM: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial
examples", 2015); for L2 it is the gradient at length 1 (FGM); for L1 everything goes to one pixel. One step is no test
of robustness: it is fooled by any curvature. See `PGD`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bessemer.attacks.attack import Attack, Goal, Images, Oracle
from bessemer.threat import Threat


@dataclass(frozen=True)
class FGSM(Attack):
    """One full step along the steepest direction; for `L2` this is FGM."""

    threat: Threat

    kind: ClassVar[str] = "bounded"

    @property
    def box(self) -> tuple[float, float] | None:
        """The threat's own."""
        return self.threat.box

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """One gradient, one step."""
        gradient, _, _ = oracle.gradient(images)
        return self.threat.project(images + self.threat.eps * self.threat.steepest(gradient), images)
