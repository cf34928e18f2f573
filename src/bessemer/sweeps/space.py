"""What a sweep varies: settings of a recipe, each with values in a list or a range to search.

    method.beta=1.0:1.6:0.05      from, to (included) and step
    seed=0,1,2                    a list; texts do as well
    optimizer.lr=1e-4:1e-1:log    for a search: a range, here on a logarithmic scale

Numbers of a range are computed in decimals, as they are written: 1.15 is 1.15, not 1.1500000000000001.
"""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from bessemer.errors import UsageError
from bessemer.training import Recipe

MOST = 10_000  # points of a grid: more are a slip of the pen
_ROUNDING = Decimal("1e-6")  # of a step: so near to the end of a range counts as the end


@dataclass(frozen=True)
class Listed:
    """A setting and the texts to be set, in order."""

    key: str
    asked: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Between:
    """A setting to be searched from `low` to `high`, both included: whole numbers, or not; in steps, if any."""

    key: str
    asked: str
    low: float
    high: float
    logarithmic: bool = False
    step: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Point:
    """One trial's settings: `texts` as `--set` takes them, `values` as the complete recipe holds them."""

    texts: dict[str, str]
    values: dict[str, Any]

    @property
    def identity(self) -> str:
        """Equal for equal values, however they were written."""
        return json.dumps(self.values, sort_keys=True)


def listed(text: str) -> Listed:
    """What `--grid KEY=…` says. Raises `UsageError`."""
    key, asked = _halves("--grid", text, "method.beta=1.0:1.6:0.05 or seed=0,1,2")
    bounds = _numbers(asked.split(":"))
    if bounds is None:
        return Listed(key, asked, _items("--grid", text, asked))
    if len(bounds) != 3:
        raise UsageError(f"--grid {text}: a range needs a step, such as {key}={asked}:0.1")
    start, end, step = bounds
    if not step or (end - start) / step < 0:
        raise UsageError(f"--grid {text}: steps of {step} do not lead from {start} to {end}")
    count = int((end - start) / step + _ROUNDING) + 1
    if count > MOST:
        raise UsageError(f"--grid {text}: that is {count:,} values; choose a longer step")
    return Listed(key, asked, tuple(f"{start + place * step:f}" for place in range(count)))


def searched(text: str) -> Between | Listed:
    """What `--over KEY=…` says: a range LOW:HIGH, LOW:HIGH:log or LOW:HIGH:STEP, or a list. Raises `UsageError`."""
    key, asked = _halves("--over", text, "method.beta=0.5:1.6")
    *ends, last = asked.split(":")
    logarithmic = last == "log"
    bounds = _numbers(ends if logarithmic else [*ends, last])
    if bounds is None:
        items = _items("--over", text, asked)
        if len(items) < 2:
            raise UsageError(
                f"--over {text}: one value leaves nothing to search; write LOW:HIGH, or --set {key}={asked}"
            )
        return Listed(key, asked, items)
    if len(bounds) not in (2, 2 if logarithmic else 3):
        raise UsageError(f"--over {text}: a range is LOW:HIGH, LOW:HIGH:log or LOW:HIGH:STEP")
    low, high = bounds[:2]
    step = bounds[2] if len(bounds) == 3 else None
    if not low < high:
        raise UsageError(f"--over {text}: {low} is not below {high}")
    if logarithmic and low <= 0:
        raise UsageError(f"--over {text}: a logarithmic range begins above 0, not at {low}")
    if step is not None and not 0 < step <= high - low:
        raise UsageError(f"--over {text}: steps of {step} do not fit between {low} and {high}")
    if step is not None:  # the last value that steps reach
        high = low + int((high - low) / step + _ROUNDING) * step
    return Between(key, asked, float(low), float(high), logarithmic, None if step is None else float(step))


def grid(recipe: str, changes: Sequence[str], axes: Sequence[Listed]) -> list[Point]:
    """Every combination, the last setting changing fastest; equal ones once. Each is checked against the recipe.

    Raises `UsageError` with the first combination that cannot be.
    """
    _require_apart(axes, changes)
    count = math.prod(len(axis.texts) for axis in axes)
    if count > MOST:
        raise UsageError(f"--grid: that is {count:,} points; choose longer steps or fewer settings")
    found: dict[str, Point] = {}
    for combination in itertools.product(*(axis.texts for axis in axes)):
        made = point(recipe, changes, dict(zip((axis.key for axis in axes), combination, strict=True)))
        found.setdefault(made.identity, made)
    return list(found.values())


def ranges(recipe: str, changes: Sequence[str], axes: Sequence[Between | Listed]) -> list[Between | Listed]:
    """The ranges of a search, checked at both ends and every text; whole where the recipe holds whole numbers.

    Raises `UsageError` with the first value that cannot be.
    """
    _require_apart(axes, changes)
    first = {axis.key: ends(axis)[0] for axis in axes}
    checked: list[Between | Listed] = []
    for axis in axes:
        values = [point(recipe, changes, {**first, axis.key: text}).values[axis.key] for text in ends(axis)]
        if isinstance(axis, Listed):
            checked.append(axis)
            continue
        if not all(_is_number(value) for value in values):
            raise UsageError(
                f"--over {axis.key}={axis.asked}: {axis.key} holds {values[0]!r}, no number; list its values"
            )
        whole = all(isinstance(value, int) for value in values)
        checked.append(Between(axis.key, axis.asked, axis.low, axis.high, axis.logarithmic, axis.step, whole))
    return checked


def point(recipe: str, changes: Sequence[str], texts: dict[str, str]) -> Point:
    """The point at some settings. Raises `UsageError` where the recipe refuses them."""
    tables = Recipe.named(recipe, [*changes, *(f"{key}={text}" for key, text in texts.items())]).tables
    return Point(texts, {key: _at(tables, key) for key in texts})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def ends(axis: Between | Listed) -> tuple[str, ...]:
    """The texts by which an axis is checked."""
    if isinstance(axis, Listed):
        return axis.texts
    low, high, *_ = axis.asked.split(":")
    return low, high


def _at(tables: dict[str, Any], key: str) -> Any:
    place: Any = tables
    for part in key.split("."):
        place = place[part] if isinstance(place, dict) and part in place else None
    return place


def _halves(option: str, text: str, example: str) -> tuple[str, str]:
    key, equals, asked = (part.strip() for part in text.partition("="))
    if not equals or not key or not asked:
        raise UsageError(f"{option} takes KEY=VALUES, such as {example}, not {text!r}")
    return key, asked


def _numbers(parts: Sequence[str]) -> list[Decimal] | None:
    """The numbers of a range; None where it is none."""
    if len(parts) < 2:
        return None
    try:
        numbers = [Decimal(part.strip()) for part in parts]
    except InvalidOperation:
        return None
    return numbers if all(number.is_finite() for number in numbers) else None


def _items(option: str, text: str, asked: str) -> tuple[str, ...]:
    """The texts of a list: a list of TOML values, or of anything between commas."""
    try:
        values = tomllib.loads(f"value = [{asked}]")["value"]
        # but for tables and dates, which no recipe lists, a value of TOML is written in JSON in the same way
        return tuple(json.dumps(value, ensure_ascii=False) for value in values)
    except (tomllib.TOMLDecodeError, TypeError):
        items = tuple(item.strip() for item in asked.split(","))
    if not all(items):
        raise UsageError(f"{option} {text}: a value between the commas is missing")
    return items


def _require_apart(axes: Sequence[Between | Listed], changes: Sequence[str]) -> None:
    """Refuse a setting that is given twice."""
    keys = [axis.key for axis in axes]
    set_ = {change.partition("=")[0].strip() for change in changes}
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise UsageError(f"{key} is varied twice; write all its values in one option")
        if key in set_:
            raise UsageError(f"{key} is both set and varied; leave out one of the two")
