"""Two networks on the same images: which holds more of them, by how much, and whether chance could have done that.

Of n images let a be held by both networks, b by the first alone, c by the second alone, d by neither. The shares that
the two hold differ by (c − b) / n, and only b and c say whether that is more than chance:

- the test is McNemar's in its exact form: how often would b + c tosses of a fair coin fall at least as unevenly as
  b against c? (Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
  percentages", Psychometrika 12, 1947);
- the interval is Newcombe's for paired shares, which puts together the Wilson intervals of both and the correlation φ
  between them: with p₁ in [l₁, u₁] and p₂ in [l₂, u₂] it reaches below p₁ − p₂ by
  √((p₁ − l₁)² − 2φ (p₁ − l₁)(u₂ − p₂) + (u₂ − p₂)²), and above it likewise (R. G. Newcombe, "Improved confidence
  intervals for the difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998,
  method 10).

The test is the stricter of the two where they disagree, and it alone decides whether a difference counts as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bessemer.records import wilson

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Paired:
    """What two networks did with the same images, counted."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Paired:
        """The counts of two columns: which images each holds."""
        return cls(*(int(cell.sum()) for cell in (first & second, first & ~second, ~first & second, ~first & ~second)))

    @property
    def total(self) -> int:
        """The number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """The share that the second holds less the share that the first holds; NaN of nothing."""
        return (self.only_second - self.only_first) / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Newcombe's 95 % interval of the difference; (-1, 1) of nothing."""
        if not self.total:
            return -1.0, 1.0
        first, second = self.both + self.only_first, self.both + self.only_second
        (below_first, above_first), (below_second, above_second) = (
            (count / self.total - low, high - count / self.total)
            for count in (first, second)
            for low, high in [wilson(count, self.total)]
        )
        return (
            self.difference - self._joined(above_first, below_second),
            self.difference + self._joined(below_first, above_second),
        )

    def _joined(self, first: float, second: float) -> float:
        return math.sqrt(max(0.0, first * first - 2 * self._correlation * first * second + second * second))

    @property
    def _correlation(self) -> float:
        """φ, drawn towards zero by half an image where positive; 0 where a row or column of the table is empty."""
        first, second = self.both + self.only_first, self.both + self.only_second
        margins = first * (self.total - first) * second * (self.total - second)
        agreement: float = self.both * self.neither - self.only_first * self.only_second
        if agreement > 0:
            agreement = max(agreement - self.total / 2, 0.0)
        return agreement / math.sqrt(margins) if margins else 0.0

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided test: 1 where no image tells the two apart."""
        return coin(self.only_first, self.only_second)

    @property
    def verdict(self) -> str:
        """What may be said of the second against the first: `better`, `worse` or `cannot tell`."""
        return _verdict(self.p_value, self.only_second > self.only_first)


@dataclass(frozen=True)
class Sided:
    """On how many images the second network keeps wrong answers farther away than the first, and on how many nearer.

    Whether that is more than chance is asked by the exact sign test, which is McNemar's on these two counts.
    """

    farther: int
    nearer: int

    @classmethod
    def of(cls, first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> Sided:
        """The counts of two columns of distances."""
        return cls(int((second > first).sum()), int((second < first).sum()))

    @property
    def p_value(self) -> float:
        """The exact two-sided sign test."""
        return coin(self.farther, self.nearer)

    @property
    def verdict(self) -> str:
        """As that of `Paired`."""
        return _verdict(self.p_value, self.farther > self.nearer)


def _verdict(p_value: float, gained: bool) -> str:
    if p_value >= SIGNIFICANT:
        return "cannot tell"
    return "better" if gained else "worse"


def coin(heads: int, tails: int) -> float:
    """How often a fair coin falls at least as unevenly as this, either way."""
    tosses, fewer = heads + tails, min(heads, tails)
    ways = total = 1  # exact integers: no tail is lost to rounding
    for count in range(fewer):
        ways = ways * (tosses - count) // (count + 1)
        total += ways
    return min(1.0, 2 * total / 2**tosses)
