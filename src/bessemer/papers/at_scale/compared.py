"""Networks compared on the same images: how much more often one is right, and what chance leaves of it.

Both the test images and the seeds of training are samples, so both widen the interval. With d[s, i] the difference of
seed s on image i, and n images, S seeds:

    variance of the mean = var_i(mean_s d) / n + var_s(mean_i d) / S

The first term sees image by image which network is right, so that images on which both agree add nothing. Its counts
are too small where networks nearly always agree; two made-up images, one for each side, mend that (D. G. Bonett and
R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", 2012).
The second term is 0 where there is one seed: the interval then speaks of these very networks. Degrees of freedom after
F. E. Satterthwaite, "An approximate distribution of estimates of variance components", 1946. What images and seeds do
together is in both terms, so that the interval is rather too wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bessemer.records import Claim
from bessemer.records.evaluation import Column

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over images and seeds, with its 95 % interval: shares, from 0 to 1, or differences of such."""

    value: float
    low: float
    high: float
    seeds: int
    images: int

    def level(self) -> str:
        """`34.2 [30.1, 38.4]`, in %."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def verdict(self, beyond: float = 0.0) -> str:
        """What a difference says: that it lies above or below something, or that it cannot be told."""
        if self.low > beyond:
            return "above"
        return "below" if self.high < beyond else "cannot be told from"

    def told(self, beyond: float = 0.0) -> str:
        """A difference in words: `+3.2 points [+1.0, +5.4], above 0 (500 images, 3 seeds)`."""
        seeds = f"{self.seeds} seeds" if self.seeds > 1 else "one seed"
        return (
            f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}], {self.verdict(beyond)} "
            f"{100 * beyond:.3g} ({self.images} images, {seeds})"
        )


def difference(one: Sequence[Column], other: Sequence[Column]) -> Estimate:
    """How much more often one network is right than another, seed by seed on the same images.

    one, other: a column per seed, of verdicts or of differences of such; only as many seeds as both have count.
    """
    seeds = min(len(one), len(other))
    values = np.array(one[:seeds], np.float64) - np.array(other[:seeds], np.float64)
    return _estimate(values, [1.0, -1.0])


def share(right: Sequence[Column]) -> Estimate:
    """How often a network is right: a column per seed.

    Two made-up images on each side here (A. Agresti and B. A. Coull, "Approximate is better than exact for interval
    estimation of binomial proportions", 1998).
    """
    found = _estimate(np.array(right, np.float64), [1.0, 1.0, 0.0, 0.0])
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high), found.seeds, found.images)


def claim(text: str, found: Estimate, published: str = "", beyond: float = 0.0) -> Claim:
    """That one is more often right than another, by more than so much; it holds where the whole interval says so."""
    return Claim(text, found.verdict(beyond) == "above", found.told(beyond), published)


def _estimate(values: Values, made_up: list[float]) -> Estimate:
    """The mean of values (seeds, images), and its interval."""
    from scipy.stats import t  # noqa: PLC0415  (half a second that no other command needs to wait)

    seeds, images = values.shape
    widened = np.concatenate([values.mean(0), made_up])
    over_images = widened.var(ddof=1) / len(widened)
    over_seeds = values.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    variance = over_images + over_seeds
    freedom = variance**2 / (over_images**2 / (len(widened) - 1) + over_seeds**2 / max(1, seeds - 1))
    half = float(t.ppf(0.975, freedom)) * math.sqrt(variance)
    centre = float(widened.mean())
    # a made-up image pulls the centre; what was measured lies inside all the same
    value = float(values.mean())
    return Estimate(value, min(value, centre - half), max(value, centre + half), seeds, images)
