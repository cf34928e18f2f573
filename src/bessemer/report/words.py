"""Numbers as a reader meets them: percentages, intervals, radii in both units, durations.

A radius is in [0, 1] pixels; an Linf radius is also told in grey levels, as n/255. A number that does not exist is a
dash, never `nan`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

SPACE = "\N{NO-BREAK SPACE}"
NONE = "–"


def percent(share: float) -> str:
    """`71.2 %`."""
    return NONE if math.isnan(share) else f"{100 * share:.1f}{SPACE}%"


def interval(bounds: tuple[float, float]) -> str:
    """`[66.3, 75.6]`, in percent."""
    return f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def points(difference: float) -> str:
    """`+12.3 points`, `−4.0 points`: the difference of two shares."""
    return NONE if math.isnan(difference) else f"{_signed(difference)}{SPACE}points"


def points_interval(bounds: tuple[float, float]) -> str:
    """`[+1.2, +22.6]`, in points."""
    return f"[{_signed(bounds[0])}, {_signed(bounds[1])}]"


def _signed(difference: float) -> str:
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def chance(p_value: float) -> str:
    """`p = 0.034`, `p < 0.001`."""
    below = p_value < 0.001
    return f"p{SPACE}<{SPACE}0.001" if below else f"p{SPACE}={SPACE}{p_value:.3f}"


def spread(mean_and_deviation: tuple[float, float], digits: int) -> str:
    """`113.0 ± 46.9`."""
    mean, deviation = mean_and_deviation
    return NONE if math.isnan(mean) else f"{mean:.{digits}f}{SPACE}±{SPACE}{deviation:.{digits}f}"


def count(number: int, noun: str) -> str:
    """`1,000 images`, `1 image`, `2 passes`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,}{SPACE}{noun}{'' if number == 1 else plural}"


def sentence(text: str) -> str:
    """Text with a capital in front."""
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """`3 min 12 s`."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest}{SPACE}s"


def distance(norm: str, size: float) -> str:
    """`0.412`, for Linf `0.0314 (8/255)`; `beyond` where nothing was found at any distance."""
    return radius(norm, size) if math.isfinite(size) else "beyond"


def mean(values: npt.NDArray[np.integer]) -> str:
    """`12.4`, `1,834`; a dash of nothing."""
    if not len(values):
        return NONE
    average = float(values.mean())
    return f"{average:,.0f}" if average >= 100 or average == round(average) else f"{average:.1f}"


def listed(names: Sequence[str]) -> str:
    """`regular, bang and adversarial`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def radius(norm: str, eps: float) -> str:
    """`0.0314 (8/255)` for Linf; other norms add up many pixels, so grey levels would mislead there."""
    plain = f"{eps:.3g}"
    return f"{plain}{SPACE}({255 * eps:.4g}/255)" if norm == "Linf" else plain


def ball(threat: str) -> tuple[str, float] | None:
    """The norm and radius in text such as `Linf:8/255`; None where the text is none such."""
    norm, _, size = threat.partition(":")
    numerator, _, denominator = size.partition("/")
    try:
        return norm, float(Fraction(numerator) / Fraction(denominator or "1"))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def threat_text(threat: str) -> str:
    """`Linf 0.0314 (8/255)`."""
    known = ball(threat)
    return f"{known[0]} {radius(*known)}" if known else threat


def freedom(threat: str) -> str:
    """What the attacker may do, as the end of a sentence that begins with `when`."""
    known = ball(threat)
    if known is None:
        return f"the attacker may move within {threat}" if threat else "attacked"
    size = radius(*known)
    return {
        "Linf": f"every pixel may move by up to {size}",
        "L2": f"the whole change may be up to {size} long (L2)",
        "L1": f"the moves of all pixels may add up to {size} (L1)",
    }.get(known[0], f"the change may be up to {size} in {known[0]}")
