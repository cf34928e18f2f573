"""R+FGSM: a small random step first, then the fast gradient method with what is left of the radius.

    x' = x + alpha · sign(N(0, I)),    x_adv = x' + (eps − alpha) · sign(∇_x E(x'))

Tramer, Kurakin, Papernot, Goodfellow, Boneh and McDaniel, "Ensemble adversarial training", 2018, section 4.1. The
random step leaves the sharp curvature that fast-gradient training puts right at the data points.
"""

from __future__ import annotations

from dataclasses import dataclass

from bessemer.attacks.gradient_attack import Composed, GradientAttack
from bessemer.attacks.parts import Constant, Signs, Steepest
from bessemer.errors import UsageError
from bessemer.threat import Threat


@dataclass(frozen=True)
class RFGSM(Composed):
    """A random step of `share` of the radius, then one gradient step of the rest.

    share: 1/2 in the paper. Raises `UsageError` unless it lies between 0 and 1.
    """

    threat: Threat
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"RFGSM needs a share of the radius between 0 and 1, found {self.share}")

    @property
    def composed(self) -> GradientAttack:
        """One step from a random corner."""
        size = Constant((1 - self.share) * self.threat.eps or None)
        start = Signs(self.share)
        return GradientAttack(self.threat, 1, start=start, direction=Steepest(), step_size=size, last=True)
