"""The basic iterative method: many small steps from the image itself.

Kurakin, Goodfellow and Bengio, "Adversarial examples in the physical world", 2017, section 2.2. PGD without its random
start; what is returned is the worst point visited, where the paper takes the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from bessemer.attacks.gradient_attack import Composed, GradientAttack
from bessemer.attacks.losses import Loss
from bessemer.attacks.parts import Constant, Natural
from bessemer.threat import Threat


@dataclass(frozen=True)
class BIM(Composed):
    """Small steps from the image itself. step_size: eps / steps unless given, as in the paper."""

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    loss: str | Loss = "cross-entropy"

    @property
    def composed(self) -> GradientAttack:
        """Constant steps from the image itself."""
        size = self.threat.eps / max(1, self.steps) if self.step_size is None else self.step_size
        return GradientAttack(self.threat, self.steps, self.loss, start=Natural(), step_size=Constant(size or None))
