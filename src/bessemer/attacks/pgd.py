"""Projected gradient descent: climb the loss in small steps, returning to the ball after each.

    x_{t+1} = project(x_t + step_size · direction(∇_x E(x_t)))

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks", 2018. What
is returned is the worst of all points visited in all restarts (misclassified before not, then by loss), so more steps
of one size and more restarts never make it weaker for any image. Training commonly takes the last point instead (theirs
and all that follow their code), which spares a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from bessemer.attacks.gradient_attack import Composed, GradientAttack
from bessemer.attacks.losses import Loss
from bessemer.attacks.parts import Constant, Natural, Uniform
from bessemer.threat import Threat


@dataclass(frozen=True)
class PGD(Composed):
    """Small steps up the loss inside the ball.

    step_size: in the threat's own units; 2.5 eps / steps unless given, which lets it reach any point of the ball.
    restarts: runs from different random starts, united image by image. random_start: without it the first run starts at
    the image itself. loss: `cross-entropy`; `margin` or `dlr`, which cannot underflow; or a function (goal, logits) ->
    one value per image. last: return the last point instead of the worst visited, as published recipes train; not for
    evaluation, and not with restarts. Raises `UsageError` for settings that cannot be.
    """

    threat: Threat
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str | Loss = "cross-entropy"
    last: bool = False

    @property
    def composed(self) -> GradientAttack:
        """Constant steps, projected."""
        return GradientAttack(
            self.threat,
            self.steps,
            loss=self.loss,
            start=Uniform() if self.random_start else Natural(),
            step_size=Constant(self.step_size),
            restarts=self.restarts,
            last=self.last,
        )
