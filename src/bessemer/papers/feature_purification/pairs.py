"""One number per neuron or image, before and after: whether one is larger more often than chance would have it."""

from __future__ import annotations

import torch
from torch import Tensor

from bessemer.evaluation.paired import exceeds
from bessemer.records import Share


def larger(one: Tensor, other: Tensor) -> Share:
    """Of the pairs that differ, those whose first number is the larger. Pairs with NaN do not count."""
    return Share(int((one > other).sum()), int(((one > other) | (one < other)).sum()))


def mostly(share: Share) -> bool:
    """Whether that is significantly more than half of them (exact sign test, p < 0.01)."""
    return share.total > 0 and exceeds(share.count, share.total, 0.5)


def mean(values: Tensor) -> float:
    """The mean of the numbers that are some, to four digits."""
    return float(f"{float(torch.nanmean(values.double())):.4g}")
