"""MI-FGSM: the iterative method with momentum, whose examples carry over to other models more often.

    g_{t+1} = decay · g_t + ∇_x E / ‖∇_x E‖₁,    x_{t+1} = project(x_t + step_size · direction(g_{t+1}))

Dong, Liao, Pang, Su, Zhu, Hu and Li, "Boosting adversarial attacks with momentum", 2018, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from bessemer.attacks.gradient_attack import Composed, GradientAttack
from bessemer.attacks.losses import Loss
from bessemer.attacks.parts import Constant, Momentum, Natural
from bessemer.threat import Threat


@dataclass(frozen=True)
class MIFGSM(Composed):
    """Small steps along a decaying sum of gradients. step_size: eps / steps unless given, as in the paper."""

    threat: Threat
    steps: int = 10
    decay: float = 1.0
    step_size: float | None = None
    loss: str | Loss = "cross-entropy"

    @property
    def composed(self) -> GradientAttack:
        """Constant steps from the image itself, with momentum."""
        size = self.threat.eps / max(1, self.steps) if self.step_size is None else self.step_size
        return GradientAttack(
            self.threat,
            self.steps,
            self.loss,
            start=Natural(),
            direction=Momentum(self.decay),
            step_size=Constant(size or None),
        )
