"""Hot/cold: towards a similar class, away from the true one, by the logits alone.

With logits h, true (cold) class y and hot class c, the direction is the back-propagated vector that holds |h_c| at c
and −h_y at y (Rozsa, Rudd and Boult, "Adversarial Diversity and Hard Positive Generation", 2016, section 3):

    eta = J_h(x)ᵀ w,    w_c = |h_c|,  w_y = −h_y

No loss and no softmax is involved, so nothing underflows. The scale grows by doubling until the rounded image is
misclassified, and is then bisected until two scales give the same rounded image. A hard positive lies a little further
along the same direction: 1.05 and 1.10 times the smallest scale that is misclassified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bessemer.attacks.attack import Attack, Images, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.errors import UsageError

# The direction is scaled to 1 grey level at its largest pixel. At 2^16 a pixel with a 256th of that has crossed the
# whole range; what moves by less is noise of the arithmetic.
DOUBLINGS = 16
BISECTIONS = 24  # more than float32 can tell apart


@dataclass(frozen=True)
class HotCold(Attack):
    """The nearest misclassified image in whole grey levels along the hot/cold direction (`rank=1` is the papers' HC1).

    rank: the hot class is the one with the rank-th highest logit other than the true class; a `target` takes its place.
    sign: move along the direction's sign (the papers' HC-S) instead of the direction itself (HC-D).
    overshoot: this many times as far as the nearest misclassified image, which makes hard positives; where the ray has
    left the wrong class again by then, the nearest image stands.
    Returns the original where nothing was found. Raises `UsageError` where there is no class of that rank, or for an
    overshoot below 1.
    """

    rank: int = 1
    sign: bool = False
    overshoot: float = 1.0

    kind: ClassVar[str] = "minimal"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"HotCold needs a rank from 1 upwards, found {self.rank}")
        if not 1 <= self.overshoot < math.inf:
            raise UsageError(f"HotCold needs an overshoot from 1 upwards, found {self.overshoot}")

    def passes(self, classes: int) -> tuple[int, int]:
        """One gradient, then a forward pass a scale; hard positives take one more."""
        return 2 + DOUBLINGS + BISECTIONS + (self.overshoot > 1), 1

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Growth, then bisection, each image at its own scale."""
        gradient, _, _ = oracle.gradient(images, self._objective)
        flat = gradient.flatten(1)
        largest = flat.abs().amax(1)
        # a zero direction divided by its own largest pixel would be NaN, and NaN "misclassifies"
        rows = (largest > 0).nonzero()[:, 0]
        direction = gradient[rows].sign() if self.sign else gradient[rows] / column(largest[rows], images)
        grey = (images * 255).round()
        found = images.clone()
        rows, direction, low, high = self._grow(oracle, grey, found, rows, direction)
        turned, ray = rows, direction
        nearest = images.new_zeros(len(images))  # the scale of each
        for _ in range(BISECTIONS):
            if not len(rows):
                break
            middle = (low + high) / 2
            candidate = _moved(grey[rows], direction, middle)
            # an image that an end of the interval gave already need not be asked about again
            above = _same(candidate, _moved(grey[rows], direction, high))
            below = _same(candidate, _moved(grey[rows], direction, low))
            done = above & below
            unknown = (~above & ~below).nonzero()[:, 0]
            if len(unknown):
                asked = rows[unknown]
                reached = oracle.reached(candidate[unknown], oracle.logits(candidate[unknown], asked), asked)
                found[asked[reached]] = candidate[unknown][reached]
                above[unknown] = reached
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            nearest[rows] = high
            rows, direction, low, high = rows[~done], direction[~done], low[~done], high[~done]
        if self.overshoot > 1 and len(turned):
            further = _moved(grey[turned], ray, self.overshoot * nearest[turned])
            still = oracle.reached(further, oracle.logits(further, turned), turned)
            found[turned[still]] = further[still]
        return found

    def _objective(self, goal: Goal, logits: Tensor) -> Tensor:
        """Its gradient is the direction: the weights are the logits themselves, held fixed."""
        if self.rank >= logits.shape[1]:
            raise UsageError(
                f"HotCold: rank {self.rank} needs {self.rank + 1} classes, the model has {logits.shape[1]}"
            )
        cold = goal.labels[:, None]
        if goal.target is not None:
            hot = goal.target[:, None]
        else:
            others = logits.detach().scatter(1, cold, -torch.inf)
            hot = others.topk(self.rank, dim=1).indices[:, -1:]
        hot_logit, cold_logit = logits.gather(1, hot)[:, 0], logits.gather(1, cold)[:, 0]
        return hot_logit.detach().abs() * hot_logit - cold_logit.detach() * cold_logit

    def _grow(
        self, oracle: Oracle, grey: Tensor, found: Tensor, rows: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Double the scale until the rounded image is misclassified; returns who was, and the last interval."""
        scale = direction.new_ones(len(rows))
        limit = _moved(grey[rows], direction.sign(), 256 * scale)  # where every moving pixel has reached its end
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(DOUBLINGS + 1):
            if not len(rows):
                break
            candidate = _moved(grey[rows], direction, scale)
            reached = oracle.reached(candidate, oracle.logits(candidate, rows), rows)
            found[rows[reached]] = candidate[reached]
            kept.append((rows[reached], direction[reached], scale[reached]))
            going = ~reached & ~_same(candidate, limit)
            rows, direction, limit, scale = rows[going], direction[going], limit[going], 2 * scale[going]
        if not kept:
            return rows, direction, scale, scale
        rows, direction, high = (torch.cat(parts) for parts in zip(*kept, strict=True))
        low = torch.where(high > 1, high / 2, 0)
        return rows, direction, low, high


def _moved(grey: Tensor, direction: Tensor, scale: Tensor) -> Tensor:
    """The image at a scale along the direction: rounded to grey levels, clipped, back in [0, 1]."""
    moved = grey + scale.view(-1, *[1] * (grey.dim() - 1)) * direction
    return moved.round_().clamp_(0, 255) / 255


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other).flatten(1).all(1)
