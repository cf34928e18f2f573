"""What several seeds say together."""

from __future__ import annotations

import math
import statistics


def spread(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t).

    Infinite of a single value, and of values that are all alike: these are shares of few images, and three seeds that
    happen to agree do not say how far others would differ.
    """
    if len(set(values)) < 2:
        return values[0], math.inf
    from scipy.stats import t  # noqa: PLC0415  (half a second that no other command needs to wait)

    half = statistics.stdev(values) / math.sqrt(len(values)) * t.ppf(0.975, len(values) - 1)
    return statistics.fmean(values), float(half)
