"""Carlini and Wagner's L2 attack: distance and margin in one objective, unconstrained behind a tanh.

    minimise over w   ‖x(w) − x_0‖² + c · max(0, κ − margin(x(w))),    x(w) = (tanh w + 1) / 2

by Adam. The margin is that of the logits, above 0 where the goal is reached, and κ the confidence asked for. The
constant c is searched for image by image: bisected where both a value that works and one that does not are known, ten
times larger while none has worked. Carlini and Wagner, "Towards evaluating the robustness of neural networks", 2017,
sections V and VI.A (objective f_6). As in the authors' code, a run ends for an image whose objective no longer falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bessemer.attacks.attack import Attack, Images, NearestSeen, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import margin
from bessemer.errors import UsageError
from bessemer.threat import L2

# the authors' values: how near to the ends of the box w may start, how often progress is looked at, and how much counts
INSIDE, LOOKS, PROGRESS = 0.999999, 10, 0.9999
DECAY, SQUARE_DECAY, TINY = 0.9, 0.999, 1e-8  # Adam's own (Kingma and Ba, 2015, algorithm 1)


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """The nearest misclassified image in L2, at up to `binary_steps` times `steps` gradients an image.

    confidence: by how many logits the wanted class should lead. initial_constant: the first c. Images that reach the
    goal to begin with, and those for which nothing was found, come back as they are. Raises `UsageError` for settings
    that cannot be.
    """

    steps: int = 1000
    binary_steps: int = 9
    learning_rate: float = 0.01
    initial_constant: float = 0.001
    confidence: float = 0.0

    kind: ClassVar[str] = "minimal"
    norm: ClassVar[str] = "L2"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.binary_steps < 1:
            raise UsageError(
                f"CarliniWagner needs at least 1 step and 1 binary step, found {self.steps} and {self.binary_steps}"
            )
        if not (self.learning_rate > 0 and self.initial_constant > 0 and self.confidence >= 0):
            raise UsageError(
                "CarliniWagner needs a learning_rate and an initial_constant above 0 and a confidence from 0 upwards, "
                f"found {self.learning_rate}, {self.initial_constant} and {self.confidence}"
            )

    def passes(self, classes: int) -> tuple[int, int]:
        """A gradient a step of every run, and one before."""
        passes = 1 + self.binary_steps * self.steps
        return passes, passes

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """One run for each constant; images that reach the goal at once, or have no gradient, take none."""
        nearest = NearestSeen(oracle, images, L2(0.0).size)
        gradient, logits, _ = oracle.gradient(images, self._shortfall)
        reached = nearest.offer(images, self._handicapped(logits, goal))
        rows = (~reached & gradient.flatten(1).any(1)).nonzero()[:, 0]
        constant = images.new_full((len(rows),), self.initial_constant)
        low, high = torch.zeros_like(constant), torch.full_like(constant, torch.inf)
        for _ in range(self.binary_steps):
            if not len(rows):
                break
            found = self._run(oracle, nearest, images, goal, rows, constant)
            low, high = torch.where(found, low, constant), torch.where(found, constant, high)
            constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)
        return nearest.images

    def _run(
        self,
        oracle: Oracle,
        nearest: NearestSeen,
        images: Images,
        goal: Goal,
        rows: Int[Tensor, " k"],
        constant: Float[Tensor, " k"],
    ) -> Bool[Tensor, " k"]:
        """Adam with one constant per image; tells for which of them it reached the goal."""
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        going = torch.arange(len(rows), device=rows.device)
        originals = images[rows]
        w = torch.atanh(INSIDE * (2 * originals - 1))
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        before = torch.full_like(constant, torch.inf)
        for step in range(1, self.steps + 1):
            x = (w.tanh() + 1) / 2
            slope, logits, shortfall = oracle.gradient(x, self._shortfall, rows)
            found[going] |= nearest.offer(x, self._handicapped(logits, goal.at(rows)), rows)
            behind = shortfall > 0
            change, shortfall = x - originals, shortfall.clamp_min(0)
            # the chain rule through the tanh: dx/dw = 2 x (1 − x)
            gradient = (2 * change + column(constant * behind, x) * slope) * 2 * x * (1 - x)
            mean = DECAY * mean + (1 - DECAY) * gradient
            square = SQUARE_DECAY * square + (1 - SQUARE_DECAY) * gradient.square()
            unbiased = (square / (1 - SQUARE_DECAY**step)).sqrt()
            w = w - self.learning_rate * mean / (1 - DECAY**step) / (unbiased + TINY)
            if step % max(1, self.steps // LOOKS) == 0:
                objective = change.flatten(1).square().sum(1) + constant * shortfall
                falls = objective < PROGRESS * before
                going, rows, constant, before = going[falls], rows[falls], constant[falls], objective[falls]
                originals, w, mean, square = originals[falls], w[falls], mean[falls], square[falls]
                if not len(rows):
                    break
        return found

    def _shortfall(self, goal: Goal, logits: Tensor) -> Tensor:
        """By how much the margin falls short of the confidence; below 0 where it does not.

        The hinge comes after the gradient: a level loss would look as if the model hid its gradients.
        """
        return self.confidence - margin(goal, logits)

    def _handicapped(self, logits: Tensor, goal: Goal) -> Tensor:
        """The logits with the wanted class behind by the confidence: the goal counts as reached only beyond it."""
        wanted, lead = (goal.labels, self.confidence) if goal.target is None else (goal.target, -self.confidence)
        return logits.scatter_add(1, wanted[:, None], torch.full_like(logits[:, :1], lead))
