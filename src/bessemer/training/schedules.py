"""How the learning rate moves: each schedule maps (iteration, iterations) to a multiplier of the base rate.

`iteration` counts from 0 and is the update about to be made; `iterations` is the length of the whole run. A
schedule is a value without state, so a resumed run continues it by asking again. `Fixed`, `Inv` and `Step`
are Caffe's fixed, inv and multistep policies; `Cosine` is Loshchilov and Hutter's ("SGDR", 2017) without
restarts; `OneCycle` is Smith and Topin's ("Super-convergence", 2018).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from bessemer.errors import UsageError

Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class Fixed:
    """The base rate throughout."""

    def __call__(self, iteration: int, iterations: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Inv:
    """(1 + gamma · iteration) ** -power: Caffe's LeNet."""

    gamma: float = 1e-4
    power: float = 0.75

    def __post_init__(self) -> None:
        _require(0 <= self.gamma < math.inf, f"inv: gamma should be a number from 0 upwards, not {self.gamma!r}")
        _require(0 <= self.power < math.inf, f"inv: power should be a number from 0 upwards, not {self.power!r}")

    def __call__(self, iteration: int, iterations: int) -> float:
        """The multiplier; the length of the run has no part in it."""
        return (1 + self.gamma * iteration) ** -self.power


@dataclass(frozen=True)
class Step:
    """Multiplied by `factor` at each iteration of `at`: Caffe's multistep.

    warmup: over so many iterations the rate climbs in a straight line from `start` to 1 (Goyal et al., "Accurate, large
    minibatch SGD", 2017, section 2.2).
    """

    at: tuple[int, ...]
    factor: float = 0.1
    warmup: int = 0
    start: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(self.at))
        _require(len(self.at) > 0, "step: at should name at least one iteration; for a constant rate use fixed")
        _require(
            all(isinstance(place, int) and place > 0 for place in self.at) and list(self.at) == sorted(set(self.at)),
            f"step: at should be whole numbers from 1 upwards, each above the last, not {list(self.at)}",
        )
        _require(0 < self.factor < math.inf, f"step: factor should be a number above 0, not {self.factor!r}")
        _require(
            isinstance(self.warmup, int) and self.warmup >= 0,
            f"step: warmup should be a whole number of iterations from 0 upwards, not {self.warmup!r}",
        )
        _require(0 <= self.start <= 1, f"step: start should lie between 0 and 1, not {self.start!r}")

    def __call__(self, iteration: int, iterations: int) -> float:
        """The multiplier; places beyond the end of the run are never reached."""
        climbed = min(iteration / self.warmup, 1.0) if self.warmup else 1.0
        return (self.start + (1 - self.start) * climbed) * self.factor ** bisect_right(self.at, iteration)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to `final`, after `warmup` iterations of straight climb."""

    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _require(
            isinstance(self.warmup, int) and self.warmup >= 0,
            f"cosine: warmup should be a whole number of iterations from 0 upwards, not {self.warmup!r}",
        )
        _require(0 <= self.final <= 1, f"cosine: final should lie between 0 and 1, not {self.final!r}")

    def __call__(self, iteration: int, iterations: int) -> float:
        """The multiplier: 1 at iteration `warmup`, `final` just after the last."""
        _require(
            self.warmup < iterations,
            f"cosine: a warmup of {self.warmup} iterations leaves nothing of a run of {iterations}",
        )
        if iteration < self.warmup:
            return (iteration + 1) / (self.warmup + 1)
        return _half_cosine(1.0, self.final, (iteration - self.warmup) / (iterations - self.warmup))


@dataclass(frozen=True)
class OneCycle:
    """Half a cosine up from `start` to 1, another down to `final`; the base rate is the peak.

    peak_at: the share of the run that climbs. start, final: multiples of the peak, at the first and the last
    iteration.
    """

    peak_at: float = 0.3
    start: float = 0.04
    final: float = 1e-4

    def __post_init__(self) -> None:
        _require(0 < self.peak_at < 1, f"one-cycle: peak_at should lie between 0 and 1, not {self.peak_at!r}")
        _require(0 <= self.start <= 1, f"one-cycle: start should lie between 0 and 1, not {self.start!r}")
        _require(0 <= self.final <= 1, f"one-cycle: final should lie between 0 and 1, not {self.final!r}")

    def __call__(self, iteration: int, iterations: int) -> float:
        """The multiplier: 1 when `peak_at` of the run's iterations are done."""
        last = iterations - 1
        peak = max(self.peak_at * iterations - 1, 0.0)
        if iteration < peak:
            return _half_cosine(self.start, 1.0, iteration / peak)
        return _half_cosine(1.0, self.final, (iteration - peak) / (last - peak) if last > peak else 0.0)


SCHEDULES: dict[str, type[Fixed] | type[Inv] | type[Step] | type[Cosine] | type[OneCycle]] = {
    "fixed": Fixed,
    "inv": Inv,
    "step": Step,
    "cosine": Cosine,
    "one-cycle": OneCycle,
}


def _half_cosine(begin: float, end: float, progress: float) -> float:
    """From `begin` to `end` along half a cosine; past the end it stays there."""
    return end + (begin - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
