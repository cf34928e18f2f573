"""The fast gradient value: a line search along the loss gradient itself, not its sign, on 8-bit pixels.

    η = ∇_x J / max |∇_x J|,    x(s) = clip(round(x + s η)) in grey levels

Rozsa, Rudd and Boult, "Adversarial diversity and hard positive generation", 2016, section 3. The scale s grows by
doubling until the rounded image is misclassified, and the last interval is bisected until its ends are one grey level
apart. Where a ray leaves the class and re-enters it, this settles on one of the crossings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import Loss

# At scale 2^16 a pixel with a 256th of the largest gradient has crossed the whole range.
DOUBLINGS = 16
BISECTIONS = 24  # more than float32 can tell apart


@dataclass(frozen=True)
class FGV(Attack):
    """The nearest misclassified point found along the loss gradient, in whole grey levels.

    Images are rounded to grey levels first. loss: as for `PGD`; cross-entropy leaves no direction where its gradient
    underflows. Images that reach the goal to begin with, and those for which no point of the ray does, come back as
    they are.
    """

    loss: str | Loss = "cross-entropy"

    kind: ClassVar[str] = "minimal"

    def __post_init__(self) -> None:
        losses.named(self.loss)

    def passes(self, classes: int) -> tuple[int, int]:
        """One gradient, then a forward pass a scale."""
        return 2 + DOUBLINGS + BISECTIONS, 1

    def remarks(self, classes: int) -> list[str]:
        """Whether the loss needs more classes."""
        return losses.remarks(self.loss, classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Growth, then bisection, each image at its own scale."""
        gradient, logits, _ = oracle.gradient(images, losses.named(self.loss))
        largest = gradient.flatten(1).abs().amax(1)
        direction = gradient / column(largest.where(largest > 0, 1.0), gradient)
        grey = (images * 255).round()
        found = images.clone()
        high = torch.full_like(largest, torch.inf)

        def misclassified(scale: Tensor, rows: Tensor) -> Tensor:
            candidate = _moved(grey[rows], direction[rows], scale)
            reached = oracle.reached(candidate, oracle.logits(candidate, rows), rows)
            found[rows[reached]] = candidate[reached]
            return reached

        rows = ((largest > 0) & ~oracle.reached(images, logits)).nonzero()[:, 0]
        for doubling in range(DOUBLINGS + 1):
            if not len(rows):
                break
            scale = largest.new_full((len(rows),), 2.0**doubling)
            reached = misclassified(scale, rows)
            high[rows[reached]] = scale[reached]
            rows = rows[~reached]
        low = high / 2  # at a scale below 1/2 no pixel moves
        rows = high.isfinite().nonzero()[:, 0]
        for _ in range(BISECTIONS):
            start, end = (_moved(grey[rows], direction[rows], scale[rows]) for scale in (low, high))
            # between images that are one grey level of one pixel apart there is no other
            rows = rows[255 * (end - start).flatten(1).abs().sum(1) > 1.5]
            if not len(rows):
                break
            middle = (low[rows] + high[rows]) / 2
            reached = misclassified(middle, rows)
            low[rows], high[rows] = torch.where(reached, low[rows], middle), torch.where(reached, middle, high[rows])
        return found


def _moved(grey: Tensor, direction: Tensor, scale: Tensor) -> Tensor:
    """The image at a scale along the direction: rounded to grey levels, clipped, back in [0, 1]."""
    return (grey + column(scale, grey) * direction).round_().clamp_(0, 255) / 255
