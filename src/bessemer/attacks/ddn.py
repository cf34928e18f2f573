"""Decoupled direction and norm: the gradient turns the change, its length grows and shrinks by the verdict alone.

    δ_k = δ_{k−1} + α_k ∇J(x_{k−1}) / ‖∇J(x_{k−1})‖₂
    ε_k = (1 − γ) ε_{k−1} where x_{k−1} is adversarial, (1 + γ) ε_{k−1} where not;    ε_0 = 1
    x_k = clip(x_0 + ε_k δ_k / ‖δ_k‖₂),    δ_k ← x_k − x_0

with steps α_k that fall from 1 to 0.01 along half a cosine. Rony, Hafemann, Oliveira, Ben Ayed, Granger and Sabourin,
"Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses", 2019, algorithm 1.
Ours is the end: the length is only ever right to about γ, so the segment from the original image is bisected. On a
linear model of two classes whose box is inactive the distance is then exact to a thousandth. With more classes the
cross-entropy draws the change to several at a time; with the margin it is as exact, to the class that it ends in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, NearestSeen, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import Loss
from bessemer.attacks.segment import HALVINGS, bisect
from bessemer.errors import UsageError
from bessemer.threat import L2

FIRST_STEP, LAST_STEP = 1.0, 0.01


@dataclass(frozen=True)
class DDN(Attack):
    """The nearest misclassified image in L2, with a gradient a step and no constant to search for.

    gamma: the share by which the length of the change grows or shrinks at each step. levels: pixels are rounded to so
    many values (256 for 8-bit images) at every step, as in the paper; the bisection at the end is then left out. loss:
    as for `PGD`. Images that reach the goal to begin with, and those for which nothing was found, come back as they
    are. Raises `UsageError` for settings that cannot be.
    """

    steps: int = 100
    gamma: float = 0.05
    levels: int | None = None
    loss: str | Loss = "cross-entropy"

    kind: ClassVar[str] = "minimal"
    norm: ClassVar[str] = "L2"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.gamma < 1:
            raise UsageError(
                f"DDN needs at least 1 step and gamma between 0 and 1, found {self.steps} and {self.gamma}"
            )
        if self.levels is not None and self.levels < 2:
            raise UsageError(f"DDN needs at least 2 levels, found {self.levels}")
        losses.named(self.loss)

    def passes(self, classes: int) -> tuple[int, int]:
        """A gradient a step, a look at the last point, then the bisection."""
        return self.steps + 1 + (HALVINGS if self.levels is None else 0), self.steps

    def remarks(self, classes: int) -> list[str]:
        """Whether the loss needs more classes."""
        return losses.remarks(self.loss, classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """All images take all steps, but for those that reach the goal at once or have no gradient to start with."""
        ball, loss = L2(0.0), losses.named(self.loss)
        nearest = NearestSeen(oracle, images, ball.size)
        gradient, logits, _ = oracle.gradient(images, loss)
        reached = nearest.offer(images, logits)
        rows = (~reached & gradient.flatten(1).any(1)).nonzero()[:, 0]
        if not len(rows):
            return nearest.images
        x, originals, gradient, reached = images[rows], images[rows], gradient[rows], reached[rows]
        radius = torch.ones_like(x.flatten(1)[:, 0])
        for step in range(self.steps):
            if step > 0:
                gradient, logits, _ = oracle.gradient(x, loss, rows)
                reached = nearest.offer(x, logits, rows)
            size = LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + math.cos(math.pi * step / self.steps)) / 2
            direction = ball.steepest(x - originals + size * ball.steepest(gradient))
            radius = torch.where(reached, radius * (1 - self.gamma), radius * (1 + self.gamma))
            x = self._legal(originals + column(radius, x) * direction)
        nearest.offer(x, oracle.logits(x, rows), rows)
        if self.levels is None:
            bisect(oracle, nearest, images)
        return nearest.images

    def _legal(self, images: Images) -> Images:
        images = images.clamp(0, 1)
        return images if self.levels is None else (images * (self.levels - 1)).round() / (self.levels - 1)
