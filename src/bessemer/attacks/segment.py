"""The end of a search for the nearest point: bisect the segment from a right point to the misclassified one found.

Attacks that step over the boundary overshoot it. Halving the segment between a point the model gets right and the one
that it does not brings the distance on a linear model to within 2⁻¹¹ of the segment's length.
"""

from __future__ import annotations

import torch

from bessemer.attacks.attack import Images, NearestSeen, Oracle, column

HALVINGS = 11  # further down, the verdict would hang on how a matrix product is rounded


def bisect(oracle: Oracle, nearest: NearestSeen, right: Images) -> None:
    """Offer `nearest` the points where the segments from `right` to its own images cross the boundary.

    right: a point for each image that does not reach the goal; images for which nothing was found stay as they are.
    """
    rows = ((nearest.distance > 0) & nearest.distance.isfinite()).nonzero()[:, 0]
    if not len(rows):
        return
    low, high = right[rows], nearest.images[rows]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        reached = column(nearest.offer(middle, oracle.logits(middle, rows), rows), middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
