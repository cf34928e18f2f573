"""Projected gradient descent: climb the loss in small steps, returning to the ball after each.

    x_{t+1} = project(x_t + step_size · direction(∇_x E(x_t)))

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks", 2018. What
is returned is the worst of all points visited in all restarts (misclassified before not, then by loss), so more steps
of one size and more restarts never make it weaker for any image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bessemer import randomness
from bessemer.attacks.attack import LOSSES, Attack, Goal, Images, Oracle, Worst
from bessemer.errors import UsageError, unknown
from bessemer.threat import Threat


@dataclass(frozen=True)
class PGD(Attack):
    """Small steps up the loss inside the ball.

    step_size: in the threat's own units; 2.5 eps / steps unless given, which lets it reach any point of the ball.
    restarts: runs from different random starts, united image by image. random_start: without it the first run starts at
    the image itself. loss: `cross-entropy`, or `margin`, which cannot underflow.
    Raises `UsageError` for settings that cannot be.
    """

    threat: Threat
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "cross-entropy"

    kind: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"PGD needs at least 1 step and 1 restart, found {self.steps} and {self.restarts}")
        if self.step_size is not None and not self.step_size > 0:
            raise UsageError(f"PGD needs a step_size above 0, found {self.step_size}")
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    @property
    def box(self) -> tuple[float, float] | None:
        """The threat's own."""
        return self.threat.box

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """All restarts; each goes on only with the images that are still worth trying."""
        worst = Worst(images, goal, until_success)
        for restart in range(self.restarts):
            rows = worst.open
            if rows is not None and not len(rows):
                break
            originals, places = (images, index) if rows is None else (images[rows], index[rows])
            if self.random_start or restart:
                start = self.threat.sample(originals, randomness.subseed(seed, restart), places)
            else:
                start = originals
            self._climb(oracle, worst, start, originals, goal, rows)
        return worst.images

    def _climb(
        self, oracle: Oracle, worst: Worst, x: Tensor, originals: Tensor, goal: Goal, rows: Tensor | None
    ) -> None:
        """One run: offers every point it visits to `worst`."""
        objective = LOSSES[self.loss]
        step_size = 2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size
        for _ in range(self.steps):
            gradient, logits, values = oracle.gradient(x, objective, rows)
            reached = worst.offer(x, logits, values, rows)
            if rows is not None and reached.any():
                going = ~reached
                rows, x, gradient, originals = rows[going], x[going], gradient[going], originals[going]
                if not len(rows):
                    return
            x = self.threat.project(x + step_size * self.threat.step(gradient, x), originals)
        logits = oracle.logits(x, rows)
        worst.offer(x, logits, objective(goal.at(rows), logits), rows)
