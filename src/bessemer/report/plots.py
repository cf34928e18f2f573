"""Robust accuracy over the radius, over the distance of minimal attacks, over the steps of one: what goes into a plot.

One run: a line per attack, and a thick one that unites them. Several runs: first the lines that unite the attacks, one
a run, and then, on the same axis, a small plot per run with its attacks. Where nothing unites them, or there is but one
attack, a plot per attack holds all runs. Colour always means the run; dashes and marker mean the attack there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from bessemer.records import WORST, Curve, Evaluation, Share
from bessemer.records.evaluation import Column
from bessemer.report import figures, tables, words
from bessemer.report.comparison import Comparison, Entry, doubts, worst_case_doubts
from bessemer.report.figures import Axis, Line, Look

NEAREST = "nearest of all"  # the line that unites minimal attacks
FINEST = 300  # steps of a staircase; more could not be told apart


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    look: Look
    name: str
    doubted: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure with its heading, its legend and the table that says the same."""

    heading: str
    conditions: str
    svg: Markup
    legend: list[Key]
    table: tables.Table


@dataclass(frozen=True)
class Trace:
    """Robust accuracy of one run under one attack, or under several united: `shares[i]` at `at[i]`."""

    entry: Entry
    attack: str
    at: list[float]
    shares: list[Share]
    distances: tuple[float, ...] = ()  # of every image, where it was made of distances

    @property
    def doubted(self) -> bool:
        """Whether its figures cannot be trusted."""
        evaluation = self.entry.evaluation
        return bool(worst_case_doubts(evaluation) if self.attack == WORST else doubts(evaluation, self.attack))


@dataclass(frozen=True)
class Panel:
    """The traces of one plot, each with its look and its name in the legend."""

    heading: str
    traces: list[tuple[Trace, Look, str]]
    by_attack: bool


Tabulated = Callable[[list[tuple[Trace, tables.Column]]], tables.Table]


def over_radius(groups: list[Comparison], several: bool) -> list[Plot]:
    """The curves of bounded attacks, per norm; `several` says whether a plot must name its conditions."""
    plots: list[Plot] = []
    for group in groups:
        by_norm: dict[str, list[Trace]] = {}
        for entry in group.entries:
            for curve in entry.evaluation.curves:
                if not _of_distances(entry.evaluation, curve):
                    shares = [Share(robust, curve.total) for robust in curve.robust]
                    by_norm.setdefault(curve.norm, []).append(Trace(entry, curve.attack, curve.eps, shares))
        for norm, traces in by_norm.items():
            suite = words.ball(group.threat)
            marked = suite[1] if suite is not None and suite[0] == norm else math.nan
            axis = Axis("radius in [0, 1] pixels", norm, marked)
            plots += _plots(
                traces,
                WORST,
                axis,
                f"curve-{len(plots) + 1}",
                f"Robust accuracy over the {norm} radius",
                group.title if several else "",
                lambda shown, norm=norm: tables.over(  # type: ignore[misc]
                    f"Robust accuracy over the {norm} radius, with its 95{words.SPACE}% interval",
                    "radius",
                    lambda eps: words.radius(norm, eps),
                    [(trace.at, trace.shares, column) for trace, column in shown],
                ),
            )
    return plots


def over_distance(groups: list[Comparison], several: bool) -> list[Plot]:
    """How far the nearest wrong answer lies, per norm of the minimal attacks: robust accuracy as a staircase."""
    plots: list[Plot] = []
    for group in groups:
        norms = dict.fromkeys(
            rows.norm
            for entry in group.entries
            for rows in entry.evaluation.attacks
            if rows.kind == "minimal" and rows.norm
        )
        for norm in norms:
            traces = [trace for entry in group.entries for trace in _staircases(entry, norm)]
            found = [value for trace in traces for value in trace.distances if 0 < value < math.inf]
            # one image in a hundred may lie too far off for the axis; the table says where
            end = 1.1 * float(np.quantile(found, 0.99)) if found else math.nan
            plots += _plots(
                [_to_the_end(trace, end) for trace in traces],
                NEAREST,
                Axis("distance in [0, 1] pixels", norm, end=end),
                f"distance-{len(plots) + 1}",
                f"Share of images without a wrong answer within a {norm} distance",
                group.title if several else "",
                lambda shown, norm=norm: tables.quantiles(  # type: ignore[misc]
                    norm, [(trace.distances, column) for trace, column in shown]
                ),
            )
    return plots


def over_steps(groups: list[Comparison], several: bool) -> list[Plot]:
    """How robust accuracy falls with the steps of PGD, in the suite that asks for that, targeted or not."""
    plots: list[Plot] = []
    for group in groups:
        traces = [trace for entry in group.entries for trace in _lasting(entry)]
        if traces:
            plots += _plots(
                traces,
                "",
                Axis("steps", logarithmic=True),
                f"steps-{len(plots) + 1}",
                "Robust accuracy over the steps of the attack",
                group.title if several else "",
                lambda shown: tables.over(
                    f"Robust accuracy after so many steps, with its 95{words.SPACE}% interval",
                    "steps",
                    lambda count: f"{count:,.0f}",
                    [(trace.at, trace.shares, column) for trace, column in shown],
                ),
            )
    return plots


def _of_distances(evaluation: Evaluation, curve: Curve) -> bool:
    """Whether a curve was read off the distances of minimal attacks, which are drawn more finely by themselves."""
    minimal = {rows.name for rows in evaluation.attacks if rows.kind == "minimal" and rows.norm}
    others = {other.attack for other in evaluation.curves if other.norm == curve.norm} - {WORST}
    return curve.attack in minimal or (curve.attack == WORST and bool(others) and others <= minimal)


def _staircases(entry: Entry, norm: str) -> list[Trace]:
    evaluation = entry.evaluation
    names = [rows.name for rows in evaluation.attacks if rows.kind == "minimal" and rows.norm == norm]
    traces = [_staircase(entry, name, evaluation.distances(norm, name)) for name in names]
    united = [_staircase(entry, NEAREST, evaluation.distances(norm))] if len(names) > 1 else []
    return traces + united


def _staircase(entry: Entry, attack: str, distances: Column) -> Trace:
    found = np.unique(distances[np.isfinite(distances)])
    if len(found) > FINEST:
        found = found[np.linspace(0, len(found) - 1, FINEST).round().astype(int)]
    at = [0.0, *found[found > 0].tolist()]
    shares = [Share(int((distances > value).sum()), len(distances)) for value in at]
    return Trace(entry, attack, at, shares, tuple(distances.tolist()))


def _to_the_end(trace: Trace, end: float) -> Trace:
    """The staircase with its last step as long as the axis: what was not found is found nowhere on it."""
    if trace.shares[-1].count == 0 or not trace.at[-1] < end:
        return trace
    return replace(trace, at=[*trace.at, end], shares=[*trace.shares, trace.shares[-1]])


def _lasting(entry: Entry) -> list[Trace]:
    """The curve of a run, under the name of the attack it ends with."""
    curve = entry.evaluation.over_budgets()
    if len(curve) < 2:
        return []
    return [Trace(entry, f"PGD-{max(curve)}", [float(count) for count in curve], list(curve.values()))]


def _plots(
    traces: list[Trace], united: str, axis: Axis, name: str, title: str, conditions: str, tabulated: Tabulated
) -> list[Plot]:
    plots: list[Plot] = []
    for panel in _panels(traces, united):
        lines = [_line(trace, look, panel.by_attack) for trace, look, _ in panel.traces]
        columns = [
            (trace, tables.Column(label, "", -1 if panel.by_attack else look.place))
            for trace, look, label in panel.traces
        ]
        heading = f"{panel.heading}, {axis.unit}" if axis.unit else panel.heading
        plots.append(
            Plot(
                heading,
                conditions,
                figures.accuracy_over(
                    lines,
                    axis,
                    name if not plots else f"{name}-{len(plots) + 1}",
                    f"{title}, {panel.heading}" if panel.by_attack else f"{title} under {panel.heading}",
                ),
                [Key(look, label, trace.doubted) for trace, look, label in panel.traces],
                tabulated(columns),
            )
        )
    return plots


def _panels(traces: list[Trace], united: str) -> list[Panel]:
    attacks = list(dict.fromkeys(trace.attack for trace in traces))
    runs = list(dict.fromkeys(trace.entry.place for trace in traces))
    if len(attacks) == 1 or (len(runs) > 1 and united not in attacks):
        return [_over_runs(attack, traces) for attack in attacks]
    first = [_over_runs(united, traces)] if len(runs) > 1 else []
    return first + [_over_attacks([trace for trace in traces if trace.entry.place == run], united) for run in runs]


def _over_runs(attack: str, traces: list[Trace]) -> Panel:
    shown = [trace for trace in traces if trace.attack == attack]
    return Panel(attack, [(trace, Look(trace.entry.place), trace.entry.name) for trace in shown], by_attack=False)


def _over_attacks(traces: list[Trace], united: str) -> Panel:
    """The attacks of one run, what unites them first."""
    entry = traces[0].entry
    single = [trace for trace in traces if trace.attack != united]
    looks = [(trace, Look(entry.place, number), trace.attack) for number, trace in enumerate(single)]
    whole = [(trace, Look(entry.place, bold=True), trace.attack) for trace in traces if trace.attack == united]
    return Panel(entry.name, whole + looks, by_attack=True)


def _line(trace: Trace, look: Look, by_attack: bool) -> Line:
    stairs = bool(trace.distances)
    band = look.bold or not by_attack
    median = float(np.median(trace.distances)) if stairs and band else math.nan
    return Line(look, trace.at, trace.shares, band, stairs, median)
