"""Two ways of doing the same thing, timed in turn, and their ratio.

Machines are shared and their speed drifts: A B A B … in one process, the ratio taken pair by pair, its median quoted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ratios(others: dict[str, Callable[[], object]], base: Callable[[], object], pairs: int = 15) -> dict[str, dict]:
    """Each of `others` over `base`: the median ratio of the pairs, their quartiles, and the median seconds of both."""
    base()
    for run in others.values():
        run()
    found: dict[str, dict] = {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    for _ in range(pairs):
        for name, run in others.items():
            before, own, after = seconds(base), seconds(run), seconds(base)
            times[name].append((own, (before + after) / 2))
    for name, both in times.items():
        quotients = [own / bare for own, bare in both]
        low, middle, high = statistics.quantiles(quotients, n=4, method="inclusive")
        found[name] = {
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "seconds": round(statistics.median(own for own, _ in both), 4),
            "base_seconds": round(statistics.median(bare for _, bare in both), 4),
        }
    return found
