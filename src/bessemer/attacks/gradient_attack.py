"""The family of attacks that climb a loss inside a ball: FGSM, R+FGSM, BIM, MI-FGSM, PGD and those you put together.

    x_0     = start(x)
    x_{t+1} = projection(x_t + size_t · direction(∇_x loss(goal, logits(x_t))))

Each part is a value (`bessemer.attacks.parts`), so that a new attack is an expression:

    GradientAttack(Linf(8 / 255), steps=50, loss="dlr", aim=Likely(2), start=Natural(), step_size=Cosine())

The named attacks are this one with their parts chosen; `PGD(...).composed` shows which.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bessemer import randomness
from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, Oracle, WorstSeen
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import Loss
from bessemer.attacks.parts import (
    Aim,
    AllSteps,
    AsAsked,
    Ball,
    Constant,
    Direction,
    Projection,
    Start,
    Stepping,
    StepSize,
    Stop,
    Uniform,
)
from bessemer.errors import UsageError
from bessemer.threat import Threat


@dataclass(frozen=True)
class GradientAttack(Attack):
    """Climb a loss inside the ball, from parts.

    loss: `cross-entropy`, `margin`, `dlr`, or a function (goal, logits) -> one value per image. restarts: runs united
    image by image; all but the first begin at a random point. last: return the last point instead of the worst of all
    points visited (misclassified before not, then by loss), which spares a forward pass.
    Raises `UsageError` for settings that cannot be.
    """

    threat: Threat
    steps: int = 40
    loss: str | Loss = "cross-entropy"
    aim: Aim = AsAsked()
    start: Start = Uniform()
    direction: Direction = Stepping()
    step_size: StepSize = Constant()
    projection: Projection = Ball()
    stop: Stop = AllSteps()
    restarts: int = 1
    last: bool = False

    kind: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"needs at least 1 step and 1 restart, found {self.steps} and {self.restarts}")
        if self.last and self.restarts > 1:
            raise UsageError("restarts are united by their worst points; take last=False")
        losses.named(self.loss)

    def passes(self, classes: int) -> tuple[int, int]:
        """A gradient a step, and a look at the last point; an aim may look once before."""
        return self.restarts * (self.steps + 1) + 1, self.restarts * self.steps

    def remarks(self, classes: int) -> list[str]:
        """Whether the loss needs more classes."""
        return losses.remarks(self.loss, classes, targeted=not isinstance(self.aim, AsAsked))

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """All restarts; each goes on only with the images that are still worth trying."""
        aimed = self.aim.goal(oracle, images, goal, seed, index)
        worst = WorstSeen(oracle, images, until_success)
        for restart in range(self.restarts):
            rows = worst.open
            if rows is not None and not len(rows):
                break
            originals, places = (images, index) if rows is None else (images[rows], index[rows])
            start = self.start if restart == 0 else Uniform()
            x = start.point(self.threat, originals, randomness.subseed(seed, restart), places)
            self._climb(oracle, worst, x, originals, goal, aimed.at(rows), rows)
        return worst.images

    def _climb(
        self,
        oracle: Oracle,
        worst: WorstSeen,
        x: Tensor,
        originals: Tensor,
        goal: Goal,
        aimed: Goal,
        rows: Tensor | None,
    ) -> None:
        """One run: offers every point it visits to `worst`. aimed: of the images that are in it."""
        loss = losses.named(self.loss)
        project, memory = self.projection.around(originals, self.threat), None
        for step in range(self.steps):
            gradient, logits, values = oracle.gradient(x, loss, rows, aimed)
            if not self.last:
                reached = worst.offer(x, logits, values, rows)
                done = reached if worst.until_success else self.stop.done(goal.at(rows), logits, reached)
                if done is not None and done.any():
                    rows = torch.arange(len(x), device=x.device) if rows is None else rows
                    going = ~done
                    worst.close(rows[done])
                    rows, x, gradient, originals = rows[going], x[going], gradient[going], originals[going]
                    aimed = aimed.at(going)
                    memory = None if memory is None else memory[going]
                    if not len(rows):
                        return
                    project = self.projection.around(originals, self.threat)
            direction, memory = self.direction.of(gradient, x, memory, self.threat)
            size = self.step_size.at(step, self.steps, self.threat)
            x = project(torch.add(x, direction, alpha=size))
        if self.last:
            worst.put(x, rows)
            return
        logits = oracle.logits(x, rows)
        worst.offer(x, logits, loss(aimed, logits), rows)


@dataclass(frozen=True)
class Composed(Attack):
    """An attack that is a `GradientAttack` under a name of its own."""

    kind: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        try:
            self.composed  # noqa: B018  (settings that cannot be are refused at once)
        except UsageError as problem:
            raise UsageError(f"{type(self).__name__}: {problem}") from problem

    @property
    @abstractmethod
    def composed(self) -> GradientAttack:
        """The same attack, with its parts spelt out."""

    def passes(self, classes: int) -> tuple[int, int]:
        """As its parts need."""
        return self.composed.passes(classes)

    def remarks(self, classes: int) -> list[str]:
        """As its parts say."""
        return self.composed.remarks(classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """The parts do the work."""
        return self.composed.search(oracle, images, goal, seed, index, until_success)
