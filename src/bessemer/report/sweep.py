"""The page of a sweep: what did best, how it goes with the settings, what is traded for what, and every trial.

It is computed from `sweep.json` alone. Colour in a contour plot is the objective; what lies between trials is
interpolated, and nothing is said of what lies outside them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.interpolate import CloughTocher2DInterpolator
from scipy.spatial import QhullError

from bessemer.errors import UsageError, unknown
from bessemer.records import write_whole
from bessemer.records.sweep import DONE, Objective, Sweep, SweepTrial, Varied
from bessemer.report import words
from bessemer.report.figures import INK, STYLE, Look, empty, inline
from bessemer.report.tables import Cell, Column, Group, Row, Table

FINE = 120  # interpolated values along each axis of a contour plot
LEVELS = 10
NUMBERED = 12  # so many points of a front carry the numbers of their trials
BEST_FIRST = 12  # so many trials are shown before the list of all
ALL, FRONT = Look(0), Look(1)
COLOURS = "viridis"  # readable on light and dark paper, and without telling red from green


@dataclass(frozen=True)
class Drawn:
    """A figure with its heading, and what has to be said about it."""

    heading: str
    remark: str
    svg: Markup


@dataclass(frozen=True)
class Best:
    """What did best in one objective."""

    objective: str
    meaning: str
    figure: str
    trial: str
    settings: str
    command: str


def write_sweep(sweep: Sweep, path: str | Path, contour: tuple[str, str] | None = None) -> Path:
    """Write the page of a sweep as one self-contained HTML file; returns its path. Otherwise as `sweep_page`."""
    write_whole(Path(path), sweep_page(sweep, contour).encode("utf-8", "replace"))
    return Path(path)


def sweep_page(sweep: Sweep, contour: tuple[str, str] | None = None) -> str:
    """The page as HTML: no script, nothing fetched.

    contour: the two settings of the contour plots; the first two that hold numbers unless given.
    Raises `UsageError` where these are not varied, or hold no numbers.
    """
    environment = Environment(
        loader=PackageLoader("bessemer", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    states = [trial.state for trial in sweep.trials]
    return environment.get_template("sweep.html").render(
        title=f"{'A search' if sweep.search else 'A grid'} over {words.listed([one.key for one in sweep.varied])}",
        sweep=sweep,
        stands=", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))),
        judge=_judged(sweep),
        bests=_bests(sweep),
        over=_over_settings(sweep, contour),
        fronts=_fronts(sweep),
        courses=_courses(sweep) if sweep.search else [],
        leading=_table(sweep, _leading(sweep)),
        every=_table(sweep, sweep.trials) if len(sweep.trials) > BEST_FIRST else None,
        provenance=json.dumps(sweep.provenance, indent=1, ensure_ascii=False),
    )


def figure_of(objective: Objective, value: float) -> str:
    """A value of an objective as a reader meets it."""
    if objective.unit == "share":
        return words.percent(value)
    return words.duration(value) if objective.unit == "seconds" else f"{value:.4g}"


def _judged(sweep: Sweep) -> str:
    """What was measured on which images, as a sentence."""
    judge = sweep.judge
    said = f"Measured on {judge['images']} images"
    if any(one.attacked for one in sweep.objectives):
        threat = f" at {words.threat_text(judge['threat'])}" if judge["threat"] else ""
        said += f", at most {judge['samples']:,} of them attacked with the suite {judge['suite']}{threat}"
    return said + "."


def _bests(sweep: Sweep) -> list[Best]:
    bests = []
    for one in sweep.objectives:
        if (trial := sweep.best(one)) is not None:
            bests.append(
                Best(
                    f"{'Highest' if one.maximise else 'Lowest'} {one.name}",
                    one.meaning,
                    figure_of(one, trial.measured[one.name]),
                    trial.name,
                    _settings(trial),
                    trial.command,
                )
            )
    return bests


def _settings(trial: SweepTrial) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in trial.values.items())


def _value(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


# --- over the settings --------------------------------------------------------------------------------------------


def _over_settings(sweep: Sweep, contour: tuple[str, str] | None) -> list[Drawn]:
    """A contour plot per objective over two settings, or a plain one over the only setting that holds numbers."""
    numeric = [one for one in sweep.varied if _is_numeric(sweep, one.key)]
    if contour is not None:
        by_key = {one.key: one for one in numeric}
        for key in contour:
            if key not in by_key:
                raise unknown("--contour: a setting that holds numbers and is varied", key, by_key)
        if contour[0] == contour[1]:
            raise UsageError(f"--contour: {contour[0]} is named twice; name two settings")
        numeric = [by_key[key] for key in contour]
    # a setting of one value is no axis
    numeric = [one for one in numeric if len({trial.values[one.key] for trial in sweep.done}) > 1]
    drawn = []
    for place, one in enumerate(sweep.objectives):
        if len(numeric) > 1:
            drawn.append(_contour(sweep, one, numeric[0], numeric[1], f"contour-{place}"))
        elif numeric:
            drawn.append(_along(sweep, one, numeric[0], f"along-{place}"))
    return [figure for figure in drawn if figure is not None]


def _is_numeric(sweep: Sweep, key: str) -> bool:
    values = [trial.values[key] for trial in sweep.done]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _contour(sweep: Sweep, one: Objective, x: Varied, y: Varied, name: str) -> Drawn | None:
    mean = _means(sweep, one, (x.key, y.key))
    at = np.array(list(mean))
    values = np.array(list(mean.values()))
    across, up = _axis(at[:, 0], x.logarithmic), _axis(at[:, 1], y.logarithmic)
    surface = _interpolated(at, values, across, up, (x.logarithmic, y.logarithmic))
    scale = _scale(one)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty(x.key, y.key)
        axes.grid(False)
        low, high = float(values.min()) * scale, float(values.max()) * scale
        if surface is not None and low < high:
            levels = MaxNLocator(LEVELS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            filled = axes.contourf(across, up, scale * surface, levels=levels, cmap=COLOURS)
            filled.set_edgecolor("face")  # no seams between the levels
            bar = figure.colorbar(filled, ax=axes, label=_label(one))
            bar.outline.set_visible(False)
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.scatter(
            at[:, 0], at[:, 1], s=14, color="white", edgecolors="black", linewidths=0.7, zorder=3, clip_on=False
        )
        best = (max if one.maximise else min)(mean, key=lambda point: mean[point])
        axes.scatter(
            best[0],
            best[1],
            s=110,
            marker="*",
            color="white",
            edgecolors="black",
            linewidths=0.8,
            zorder=4,
            clip_on=False,
        )
        for logarithmic, set_scale, ticks in (
            (x.logarithmic, axes.set_xscale, axes.xaxis),
            (y.logarithmic, axes.set_yscale, axes.yaxis),
        ):
            if logarithmic:
                set_scale("log")
            else:
                ticks.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
                ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        span = f"{figure_of(one, float(values.min()))} to {figure_of(one, float(values.max()))}"
        text = (
            f"{one.name} over {x.key} and {y.key}: from {span}, {'highest' if one.maximise else 'lowest'} at {x.key} "
            f"{best[0]:.5g}, {y.key} {best[1]:.5g}. The figures are in the table of trials."
        )
        others = [other.key for other in sweep.varied if other.key not in (x.key, y.key)]
        same = f" Where trials differ in {words.listed(others)} alone, their mean." if others else ""
        return Drawn(
            f"{words.sentence(one.name)} over {x.key} and {y.key}",
            f"Circles are trials, the star is the {'highest' if one.maximise else 'lowest'}.{same}",
            inline(figure, name, f"{one.name} over {x.key} and {y.key}", text),
        )


def _means(sweep: Sweep, one: Objective, keys: Sequence[str]) -> dict[tuple[float, ...], float]:
    """An objective by the values of some settings: of trials that differ in others alone, the mean."""
    found: dict[tuple[float, ...], list[float]] = {}
    for trial in sweep.done:
        found.setdefault(tuple(float(trial.values[key]) for key in keys), []).append(trial.measured[one.name])
    return {point: float(np.mean(values)) for point, values in sorted(found.items())}


def _axis(values: npt.NDArray[np.float64], logarithmic: bool) -> npt.NDArray[np.float64]:
    space = np.geomspace if logarithmic else np.linspace
    return np.asarray(space(values.min(), values.max(), FINE))


def _interpolated(
    at: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    across: npt.NDArray[np.float64],
    up: npt.NDArray[np.float64],
    logarithmic: tuple[bool, bool],
) -> npt.NDArray[np.float64] | None:
    """A smooth surface through the trials, NaN outside them, nowhere beyond their values; None where there is none.

    Piecewise cubic over a triangulation (Clough and Tocher), with both settings scaled to 0 … 1 on their own scale.
    """
    points = at.copy()
    grid = np.stack(np.meshgrid(across, up), axis=-1)
    for axis in (0, 1):
        if logarithmic[axis]:
            points[:, axis], grid[..., axis] = np.log(points[:, axis]), np.log(grid[..., axis])
        low, high = points[:, axis].min(), points[:, axis].max()
        points[:, axis], grid[..., axis] = (
            (points[:, axis] - low) / (high - low),
            (grid[..., axis] - low) / (high - low),
        )
    try:
        surface = CloughTocher2DInterpolator(points, values)(np.clip(grid, 0, 1))
    except (QhullError, ValueError):  # fewer than three trials, or all on a line
        return None
    return np.asarray(np.clip(surface, values.min(), values.max()))


def _along(sweep: Sweep, one: Objective, x: Varied, name: str) -> Drawn:
    mean = _means(sweep, one, (x.key,))
    scale = _scale(one)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty(x.key, _label(one))
        every = [(float(trial.values[x.key]), scale * trial.measured[one.name]) for trial in sweep.done]
        _points(axes, every, ALL)
        axes.plot(
            [point[0] for point in mean], [scale * value for value in mean.values()], color=ALL.stand_in, linewidth=1.3
        )
        if x.logarithmic:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        best = (max if one.maximise else min)(mean, key=lambda point: mean[point])
        text = (
            f"{one.name} over {x.key}, {'highest' if one.maximise else 'lowest'} at {best[0]:.5g}. "
            "The figures are in the table of trials."
        )
        remark = "Marks are trials; the line goes through the mean of those with one value."
        return Drawn(f"{words.sentence(one.name)} over {x.key}", remark, inline(figure, name, one.name, text))


# --- what is traded for what --------------------------------------------------------------------------------------


def _fronts(sweep: Sweep) -> list[Drawn]:
    """The Pareto front of each pair of the first three objectives."""
    if not sweep.done:
        return []
    pairs = itertools.combinations(sweep.objectives[:3], 2)
    return [_front(sweep, one, other, f"front-{place}") for place, (one, other) in enumerate(pairs)]


def _front(sweep: Sweep, one: Objective, other: Objective, name: str) -> Drawn:
    front = sorted(sweep.front([one, other]), key=lambda trial: (trial.measured[one.name], trial.run))
    numbers = ", ".join(str(trial.run) for trial in front)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty(_label(one), _label(other))
        axes.grid(True, axis="both")

        def place(trial: SweepTrial) -> tuple[float, float]:
            return _scale(one) * trial.measured[one.name], _scale(other) * trial.measured[other.name]

        _points(axes, [place(trial) for trial in sweep.done if trial not in front], ALL)
        # what a point of the front is not worse than lies on one side of a stair through it
        step = "steps-pre" if one.maximise else "steps-post"
        x, y = zip(*map(place, front), strict=True)
        axes.plot(x, y, color=FRONT.stand_in, linewidth=1.3, drawstyle=step)
        _points(axes, [place(trial) for trial in front], FRONT)
        said: set[tuple[float, float]] = set()
        for trial in front[:: max(1, math.ceil(len(front) / NUMBERED))]:
            if (there := place(trial)) not in said:
                axes.annotate(str(trial.run), there, xytext=(5, 5), textcoords="offset points", fontsize=9, color=INK)
            said.add(there)
        axes.margins(0.08)
        text = (
            f"{one.name} and {other.name} of {words.count(len(sweep.done), 'trial')}; "
            f"on the front: trial {numbers}. The figures are in the table of trials."
        )
        return Drawn(
            f"{words.sentence(one.name)} against {other.name}",
            f"The line is the Pareto front, which no trial is beyond in both. On it: trial {numbers}.",
            inline(figure, name, f"{one.name} against {other.name}", text),
        )


def _points(axes: Axes, points: Sequence[tuple[float, float]], look: Look) -> None:
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=look.stand_in,
        marker=look.marker,
        linestyle="none",
        markeredgewidth=0,
    )


# --- the search ---------------------------------------------------------------------------------------------------


def _courses(sweep: Sweep) -> list[Drawn]:
    """Each objective over the trials, and the best so far."""
    if not sweep.done:
        return []
    return [_course(sweep, one, f"course-{place}") for place, one in enumerate(sweep.objectives)]


def _course(sweep: Sweep, one: Objective, name: str) -> Drawn:
    points = [(float(trial.run), _scale(one) * trial.measured[one.name]) for trial in sweep.done]
    better: Callable[..., Any] = np.maximum if one.maximise else np.minimum
    best = better.accumulate([value for _, value in points])  # type: ignore[attr-defined]
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty("trial", _label(one))
        _points(axes, points, ALL)
        axes.plot([run for run, _ in points], best, color=FRONT.stand_in, drawstyle="steps-post", linewidth=1.3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        text = f"{one.name} of {words.count(len(points), 'trial')}, and the best so far, which ends at {best[-1]:.4g}."
        return Drawn(
            f"{words.sentence(one.name)} as the search went on",
            "Marks are trials; the line is the best so far.",
            inline(figure, name, f"{one.name} over the trials", text),
        )


def _scale(one: Objective) -> float:
    return 100.0 if one.unit == "share" else 1.0


def _label(one: Objective) -> str:
    return one.name + {"share": " (%)", "seconds": " (s)"}.get(one.unit, "")


# --- every trial --------------------------------------------------------------------------------------------------


def _leading(sweep: Sweep) -> list[SweepTrial]:
    """The first few trials, best in the first objective first; those that are not done come last."""
    first = sweep.objectives[0]
    sign = -1 if first.maximise else 1

    def rank(trial: SweepTrial) -> tuple[bool, float]:
        return trial.state != DONE, sign * trial.measured.get(first.name, 0.0)

    return sorted(sweep.trials, key=rank)[:BEST_FIRST]


def _table(sweep: Sweep, trials: Sequence[SweepTrial]) -> Table:
    front = sweep.front() if len(sweep.objectives) > 1 else []
    bests = {one.name: sweep.best(one) for one in sweep.objectives}
    rows = []
    for trial in trials:
        cells = [Cell(_value(trial.values[one.key]) if trial.values else words.NONE) for one in sweep.varied]
        for one in sweep.objectives:
            value = trial.measured.get(one.name)
            best = bests[one.name]
            mark = "best" if best is not None and value == best.measured[one.name] and trial.state == DONE else ""
            cells.append(Cell(words.NONE) if value is None else Cell(figure_of(one, value), mark))
        cells.append(Cell(words.NONE if trial.seconds is None else words.duration(trial.seconds)))
        cells.append(Cell(trial.state, trial.reason or ("on the front" if trial in front else "")))
        rows.append(Row(Cell(trial.name), cells))
    columns = [Column("trial"), *(Column(one.key) for one in sweep.varied)]
    columns += [Column(one.name, "higher is better" if one.maximise else "lower is better") for one in sweep.objectives]
    columns += [Column("training"), Column("state")]
    caption = (
        f"All {words.count(len(trials), 'trial')}, in their order"
        if len(trials) == len(sweep.trials) > BEST_FIRST
        else f"Trials, best {sweep.objectives[0].name} first"
    )
    return Table(caption, columns, [Group(rows)])
