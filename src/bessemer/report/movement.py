"""How the neurons move while a network trains, over the iterations: away from the clean network, and from their start.

Colour means the run. A run that started from a clean network has a plot to itself with a line a layer, or, where it has
more layers than can be told apart, with one line in the middle of them. How far all runs are from the random start is
one plot.
"""

from __future__ import annotations

from dataclasses import dataclass

from bessemer.records import RunRecord
from bessemer.records.movement import INITIAL, OUTWEIGHS, START, moments
from bessemer.report import figures, words
from bessemer.report.figures import Course, Look
from bessemer.report.plots import Key, Plot
from bessemer.report.tables import QUANTILES, Cell, Column, Group, Row, Table, quantile

LINES = 6  # so many layers have a line each
LOW, HIGH = QUANTILES[0], QUANTILES[-1]
SHADED = f"shaded: what lies between {100 * LOW:g} and {100 * HIGH:g}{words.SPACE}% of them"

Moments = dict[float, dict[str, float]]  # by iteration, a number a layer


@dataclass(frozen=True)
class Movement:
    """What the page shows. chained: whether some run started from a clean network."""

    title: str
    chained: bool
    plots: list[Plot]


def movement(runs: list[RunRecord]) -> Movement | None:
    """The panel; None where no run noted how its neurons move."""
    since = {place: found for place, run in enumerate(runs) if (found := moments(run.metrics, START))}
    before = {place: found for place, run in enumerate(runs) if (found := moments(run.metrics, INITIAL))}
    if not since and not before:
        return None
    whence = "the clean network" if since else "their random start"
    plots = [_from_clean(runs[place], place, found) for place, found in since.items()]
    plots += [_from_random(runs, before)] if before else []
    return Movement(f"How the neurons move away from {whence}", bool(since), plots)


def _from_clean(run: RunRecord, place: int, theta: Moments) -> Plot:
    """Theta to the weights that a run started from."""
    layers = list(dict.fromkeys(layer for moment in theta.values() for layer in moment))
    if len(layers) > LINES:
        drawn = [_middle(place, theta)]
        named, said = ["median over the layers"], f". The median over the layers; {SHADED}"
    else:
        drawn = [_alone(Look(place, style), layer, theta) for style, layer in enumerate(layers)]
        named, said = layers, ""
    return Plot(
        f"{run.name}: θ(w, w′)",
        f"w: the weights that training began with, of {run.recipe.get('init') or 'another run'}{said}",
        figures.over_iterations(
            drawn,
            "θ(w, w′)",
            f"from-clean-{place + 1}",
            f"θ of the weights that {run.name} began with and those it had, over the iterations",
        ),
        [Key(course.look, name) for course, name in zip(drawn, named, strict=True)],
        _by_layer(theta, moments(run.metrics, OUTWEIGHS), layers),
    )


def _from_random(runs: list[RunRecord], theta: dict[int, Moments]) -> Plot:
    """Theta to the random weights before all training, of several runs."""
    drawn = [_middle(place, found) for place, found in theta.items()]
    iterations = sorted({iteration for course in drawn for iteration in course.at})
    cells = [dict(zip(course.at, map(_spread, course.values, course.band), strict=True)) for course in drawn]
    rows = [Row(Cell(f"{at:,.0f}"), [column.get(at, Cell(words.NONE)) for column in cells]) for at in iterations]
    return Plot(
        "All layers: θ(w⁰, w′)",
        f"w⁰: the random weights before all training. The median over the layers; {SHADED}",
        figures.over_iterations(
            drawn, "θ(w⁰, w′)", "from-random", "θ of the random weights and those of the runs, over the iterations"
        ),
        [Key(course.look, runs[place].name) for place, course in zip(theta, drawn, strict=True)],
        Table(
            "θ(w⁰, w′), the median over the layers, and small what lies between "
            f"{100 * LOW:g} and {100 * HIGH:g}{words.SPACE}% of them",
            [Column("iteration"), *(Column(runs[place].name, "", place) for place in theta)],
            [Group(rows)],
        ),
    )


def _alone(look: Look, layer: str, theta: Moments) -> Course:
    measured = {at: moment[layer] for at, moment in theta.items() if layer in moment}
    return Course(look, list(measured), list(measured.values()))


def _middle(place: int, theta: Moments) -> Course:
    """The median over the layers, in a band that holds most of them."""
    every = [list(moment.values()) for moment in theta.values()]
    band = [(quantile(values, LOW), quantile(values, HIGH)) for values in every]
    return Course(Look(place), list(theta), [quantile(values, 0.5) for values in every], band)


def _by_layer(theta: Moments, outweighs: Moments, layers: list[str]) -> Table:
    """A row a moment, a column a layer; where a line was drawn in the middle of them, it comes first."""
    rows = []
    for at, moment in theta.items():
        cells = [_layer(moment, outweighs.get(at, {}), layer) for layer in layers]
        if len(layers) > LINES:
            values = list(moment.values())
            cells.insert(0, _spread(quantile(values, 0.5), (quantile(values, LOW), quantile(values, HIGH))))
        rows.append(Row(Cell(f"{at:,.0f}"), cells))
    middle = [Column("all layers", f"the median; {100 * LOW:g} to {100 * HIGH:g}{words.SPACE}%")]
    return Table(
        "θ(w, w′), the median over the neurons of a layer, and small the share of them with more of w along w′ than "
        "across it (β > 0 and ‖βw′‖ > ‖v‖)",
        [Column("iteration"), *(middle if len(layers) > LINES else []), *(Column(layer) for layer in layers)],
        [Group(rows)],
    )


def _layer(theta: dict[str, float], outweighs: dict[str, float], layer: str) -> Cell:
    if layer not in theta:
        return Cell(words.NONE)
    return Cell(_number(theta[layer]), words.percent(outweighs[layer]) if layer in outweighs else "")


def _spread(middle: float, band: tuple[float, float]) -> Cell:
    return Cell(_number(middle), f"{_number(band[0])} – {_number(band[1])}")


def _number(theta: float) -> str:
    return f"{theta:.3f}"
