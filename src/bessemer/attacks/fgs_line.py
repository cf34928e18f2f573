"""The fast gradient sign of BANG: a line search along the sign of the loss gradient, on 8-bit pixels.

The direction is sign(∇_x E); every radius from 1 to 255 grey levels is tried, and any misclassified point on the ray
counts, the nearest first (Rozsa, Günther and Boult, "Towards Robust Deep Neural Networks with BANG", 2018, section 4).
An all-zero gradient gives no direction, and counts as a failure of the attack: that is what makes this attack blind to
networks whose softmax underflows. With `loss="margin"` the same ray is taken from a loss that cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, Oracle
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import Loss


@dataclass(frozen=True)
class FGSLine(Attack):
    """The nearest misclassified point along the sign of the loss gradient, in whole grey levels.

    Images are rounded to grey levels first. Returns the original where no point of the ray is misclassified.
    """

    loss: str | Loss = "cross-entropy"

    kind: ClassVar[str] = "minimal"

    def __post_init__(self) -> None:
        losses.named(self.loss)

    def passes(self, classes: int) -> tuple[int, int]:
        """One gradient, then a forward pass a radius."""
        return 256, 1

    def remarks(self, classes: int) -> list[str]:
        """Whether the loss needs more classes."""
        return losses.remarks(self.loss, classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """A ray can leave the class and come back, so the radii are scanned one by one, not bisected."""
        gradient, _, _ = oracle.gradient(images, losses.named(self.loss))
        sign = gradient.sign()
        grey = (images * 255).round()
        found = images.clone()
        rows = sign.flatten(1).any(1).nonzero()[:, 0]
        for radius in range(1, 256):
            if not len(rows):
                break
            candidate = (grey[rows] + radius * sign[rows]).clamp_(0, 255) / 255
            reached = oracle.reached(candidate, oracle.logits(candidate, rows), rows)
            found[rows[reached]] = candidate[reached]
            rows = rows[~reached]
        return found
