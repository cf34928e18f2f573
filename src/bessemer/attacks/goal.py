"""What the attacker wants, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows = Int[Tensor, " k"] | None  # places in the batch an attack was called with; None for all of them


@dataclass(frozen=True)
class Goal:
    """Away from `labels`, or to `target` where one is given."""

    labels: Int[Tensor, " n"]
    target: Int[Tensor, " n"] | None = None

    def at(self, rows: Rows) -> Goal:
        """The goal for some of the images."""
        if rows is None:
            return self
        return Goal(self.labels[rows], None if self.target is None else self.target[rows])

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
        """Which images do what the attacker wants. NaN is no answer, so it reaches nothing."""
        prediction = logits.argmax(1)
        reached = prediction != self.labels if self.target is None else prediction == self.target
        return reached & ~logits.isnan().any(1)


def joined(goals: Sequence[Goal]) -> Goal:
    """The goals of several batches as that of one; all or none of them have targets."""
    labels = torch.cat([goal.labels for goal in goals])
    targets = [goal.target for goal in goals if goal.target is not None]
    return Goal(labels, torch.cat(targets) if targets else None)
