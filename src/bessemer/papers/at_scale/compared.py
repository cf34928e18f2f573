"""Networks compared on the same images: how much more often one is right, and what chance leaves of it.

Both the test images and the seeds of training are samples, so both widen the interval. With d[s, i] the difference of
seed s on image i, and n images, S seeds:

    variance of the mean = var_i(mean_s d) / n + var_s(mean_i d) / S

Where one network has more seeds than the other, they make no pairs: d[i] is then the difference of the two means over
seeds, and the second term v (1 / S₁ + 1 / S₂), v the variance of accuracies between seeds of one network, pooled over
those that have several.

The first term sees image by image which network is right, so that images on which both agree add nothing. Its counts
are too small where networks nearly always agree; two made-up images, one for each side, mend that (D. G. Bonett and
R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", 2012).
The second term is 0 where both have one seed: the interval then speaks of these very networks. Degrees of freedom after
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
    seeds: tuple[int, ...]  # of each network
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
        counts = " and ".join(map(str, dict.fromkeys(self.seeds)))
        seeds = f"{counts} seeds" if max(self.seeds) > 1 else "one seed"
        return (
            f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}], {self.verdict(beyond)} "
            f"{100 * beyond:.3g} ({self.images} images, {seeds})"
        )


def difference(one: Sequence[Column], other: Sequence[Column]) -> Estimate:
    """How much more often one network is right than another, on the same images.

    one, other: a column per seed, of verdicts or of differences of such; with as many seeds they are compared seed by
    seed.
    """
    first, second = np.array(one, np.float64), np.array(other, np.float64)
    seeds = len(first), len(second)
    if seeds[0] == seeds[1]:
        over_seeds, freedom = _between([first - second])
        over_seeds /= seeds[0]
    else:
        over_seeds, freedom = _between([first, second])
        over_seeds *= 1 / seeds[0] + 1 / seeds[1]
    return _estimate(first.mean(0) - second.mean(0), over_seeds, freedom, seeds, [1.0, -1.0])


def share(right: Sequence[Column]) -> Estimate:
    """How often a network is right: a column per seed.

    Two made-up images on each side here (A. Agresti and B. A. Coull, "Approximate is better than exact for interval
    estimation of binomial proportions", 1998).
    """
    values = np.array(right, np.float64)
    over_seeds, freedom = _between([values])
    seeds = len(values)
    found = _estimate(values.mean(0), over_seeds / seeds, freedom, (seeds,), [1.0, 1.0, 0.0, 0.0])
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high), found.seeds, found.images)


def claim(text: str, found: Estimate, published: str = "", beyond: float = 0.0) -> Claim:
    """That one is more often right than another, by more than so much; it holds where the whole interval says so."""
    return Claim(text, found.verdict(beyond) == "above", found.told(beyond), published)


def _between(networks: list[Values]) -> tuple[float, int]:
    """The variance between seeds of networks' means over images, and its degrees of freedom. Each: (seeds, images)."""
    means = [values.mean(1) for values in networks]
    freedom = sum(len(each) - 1 for each in means)
    squares = sum(float(np.square(each - each.mean()).sum()) for each in means)
    return squares / max(1, freedom), freedom


def _estimate(
    values: Values, over_seeds: float, freedom_of_seeds: int, seeds: tuple[int, ...], made_up: list[float]
) -> Estimate:
    """The mean of a value per image, and its interval."""
    from scipy.stats import t  # noqa: PLC0415  (half a second that no other command needs to wait)

    widened = np.concatenate([values, made_up])
    over_images = widened.var(ddof=1) / len(widened)
    variance = over_images + over_seeds
    freedom = variance**2 / (over_images**2 / (len(widened) - 1) + over_seeds**2 / max(1, freedom_of_seeds))
    half = float(t.ppf(0.975, freedom)) * math.sqrt(variance)
    centre = float(widened.mean())
    # a made-up image pulls the centre; what was measured lies inside all the same
    value = float(values.mean())
    return Estimate(value, min(value, centre - half), max(value, centre + half), seeds, len(values))
