"""The fast gradient method: one step of full size along the steepest direction of the loss.

    x' = x + eps · argmax_{|d| ≤ 1} ⟨d, ∇_x E⟩

For Linf the direction is the sign (FGSM: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial
examples", 2015); for L2 it is the gradient at length 1 (FGM); for L1 everything goes to one pixel. One step is no test
of robustness: it is fooled by any curvature. See `PGD`.
"""

from __future__ import annotations

from dataclasses import dataclass

from bessemer.attacks.gradient_attack import Composed, GradientAttack
from bessemer.attacks.parts import Constant, Natural, Steepest
from bessemer.threat import Threat


@dataclass(frozen=True)
class FGSM(Composed):
    """One full step along the steepest direction; for `L2` this is FGM."""

    threat: Threat

    @property
    def composed(self) -> GradientAttack:
        """One step from the image itself, taken whatever comes of it."""
        size = Constant(self.threat.eps or None)
        return GradientAttack(self.threat, 1, start=Natural(), direction=Steepest(), step_size=size, last=True)
