"""How training stalls: which samples still move the weights, over the iterations, and by how much the others are ahead.

Four plots a run, in its colour: what comes from correctly classified samples, how many samples count, how far their
gradients lie apart, and the gap between logits that makes them so small. The first two have a line a layer, or, where
there are more layers than can be told apart, one line in the middle of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import matplotlib.style
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bessemer.records import RunRecord
from bessemer.records import stalling as record
from bessemer.records.movement import moments
from bessemer.report import figures, words
from bessemer.report.figures import INK, STYLE, Look
from bessemer.report.plots import Key, Plot
from bessemer.report.tables import QUANTILES, Cell, Column, Group, Row, Table, quantile

LINES = 6  # so many layers have a line each
LOW, HIGH = QUANTILES[0], QUANTILES[-1]
UNDERFLOW = 87  # e^-87 is about the smallest normal float32
DOTS = (0, (1, 2))

Moments = dict[float, dict[str, float]]  # by iteration, a number a layer


@dataclass(frozen=True)
class Stalling:
    """What the page shows. images: how many were measured; balanced: whether some run balances its gradients."""

    images: str
    balanced: bool
    plots: list[Plot]


@dataclass(frozen=True)
class Stroke:
    """A number over the iterations, with bands between pairs of numbers; `thin` lines have no marks."""

    look: Look
    at: list[float]
    values: list[float]
    bands: list[list[tuple[float, float]]] = field(default_factory=list)
    thin: bool = False


def stalling(runs: list[RunRecord]) -> Stalling | None:
    """The section; None where no run noted which samples move its weights."""
    noted = [place for place, run in enumerate(runs) if record.course(run.metrics, record.ACCURACY)]
    if not noted:
        return None
    counts = {count for place in noted for count in record.course(runs[place].metrics, record.IMAGES).values()}
    images = words.listed([f"{count:,.0f}" for count in sorted(counts)] or ["some"])
    balanced = any(moments(runs[place].metrics, record.CORRECT_BALANCED) for place in noted)
    return Stalling(images, balanced, [plot for place in noted for plot in _of_run(runs[place], place)])


def _of_run(run: RunRecord, place: int) -> list[Plot]:
    accuracy = record.course(run.metrics, record.ACCURACY)
    plots = [
        _by_layer(
            run,
            place,
            (record.CORRECT, record.CORRECT_BALANCED),
            "what correctly classified samples contribute",
            "share of the gradient norms",
            "Of the sum of all gradient norms. Dotted: the share of the samples that are classified correctly, which "
            "it would be if all counted alike",
            f"stalling-correct-{place + 1}",
            accuracy,
        ),
        _by_layer(
            run,
            place,
            (record.EFFECTIVE, record.EFFECTIVE_BALANCED),
            "how many samples count",
            "effective share of the samples",
            "(Σc)² / (N Σc²) of what each of the N samples counts: 1 where all count alike, 1/N where one makes the "
            "whole update. Logarithmic axis",
            f"stalling-effective-{place + 1}",
        ),
        _norms(run, place),
        _gap(run, place),
    ]
    return [plot for plot in plots if plot is not None]


# --- by layer --------------------------------------------------------------------------------------------------------


def _by_layer(
    run: RunRecord,
    place: int,
    measures: tuple[str, str],
    heading: str,
    label: str,
    conditions: str,
    name: str,
    reference: dict[float, float] | None = None,
) -> Plot | None:
    """A share before and, in layers that are balanced, after balancing.

    reference: a share to compare with, drawn dotted; without one small shares matter, and the axis is logarithmic.
    """
    before, after = (moments(run.metrics, measure) for measure in measures)
    layers = _layers(before)
    if not layers:
        return None
    if len(layers) > LINES:
        main, thin = _middle(Look(place), after or before), [_middle(Look(place), before)] if after else []
        keys = [Key(main.look, "median over the layers")]
        conditions += f". Shaded: what lies between {100 * LOW:g} and {100 * HIGH:g}{words.SPACE}% of the layers"
        drawn = [main]
    else:
        looks = {layer: Look(place, style) for style, layer in enumerate(layers)}
        drawn = [_alone(looks[layer], layer, after if layer in _layers(after) else before) for layer in layers]
        thin = [_alone(looks[layer], layer, before) for layer in _layers(after)]
        keys = [Key(look, layer) for layer, look in looks.items()]
    thin = [Stroke(stroke.look, stroke.at, stroke.values, thin=True) for stroke in thin]
    if after:
        conditions += ". Thin, without marks: before balancing. With marks: after it"
    ends = [stroke.values[-1] for stroke in drawn]
    svg = _drawn(
        [*thin, *drawn],
        label,
        name,
        f"{run.name}: {heading}, over the iterations",
        f"At the end {label} is {_between(ends)}{', after balancing' if after else ''}.",
        reference=reference,
        least=math.nan if reference else 1 / max(record.course(run.metrics, record.IMAGES).values(), default=1000),
    )
    return Plot(f"{run.name}: {heading}", conditions, svg, keys, _shares(before, after, layers, heading, reference))


def _layers(found: Moments) -> list[str]:
    return list(dict.fromkeys(layer for moment in found.values() for layer in moment))


def _alone(look: Look, layer: str, found: Moments) -> Stroke:
    measured = {at: moment[layer] for at, moment in found.items() if layer in moment}
    return Stroke(look, list(measured), list(measured.values()))


def _middle(look: Look, found: Moments) -> Stroke:
    """The median over the layers, in a band that holds most of them."""
    every = [list(moment.values()) for moment in found.values()]
    band = [(quantile(values, LOW), quantile(values, HIGH)) for values in every]
    return Stroke(look, list(found), [quantile(values, 0.5) for values in every], [band])


def _shares(
    before: Moments, after: Moments, layers: list[str], heading: str, reference: dict[float, float] | None
) -> Table:
    """A row a moment, a column a layer; where a line was drawn in the middle of them, it comes first."""
    rows = []
    for at, moment in before.items():
        balanced = after.get(at, {})
        cells = [_share(moment.get(layer), balanced.get(layer)) for layer in layers]
        if len(layers) > LINES:
            values = list((balanced or moment).values())
            spread = f"{words.percent(quantile(values, LOW))} – {words.percent(quantile(values, HIGH))}"
            cells.insert(0, Cell(words.percent(quantile(values, 0.5)), spread))
        if reference is not None:
            cells.insert(0, Cell(words.percent(reference.get(at, math.nan))))
        rows.append(Row(Cell(f"{at:,.0f}"), cells))
    columns = [Column("iteration"), *([Column("classified correctly")] if reference is not None else [])]
    if len(layers) > LINES:
        columns.append(Column("all layers", f"the median; {100 * LOW:g} to {100 * HIGH:g}{words.SPACE}%"))
    said = ", after balancing, and small before it" if after else ""
    columns += [Column(layer) for layer in layers]
    return Table(f"{words.sentence(heading)}{said}, at each layer", columns, [Group(rows)])


def _share(before: float | None, after: float | None) -> Cell:
    if before is None:
        return Cell(words.NONE)
    return Cell(words.percent(before)) if after is None else Cell(words.percent(after), words.percent(before))


# --- over the samples ------------------------------------------------------------------------------------------------


def _norms(run: RunRecord, place: int) -> Plot | None:
    """The quantiles of the samples' gradient norms, in the middle of the layers."""
    found = {share: moments(run.metrics, record.at_quantile(record.NORM, share)) for share in record.QUANTILES}
    layers = _layers(found[0.5])
    if not layers:
        return None
    middle = {
        share: {at: quantile(list(moment.values()), 0.5) for at, moment in measured.items()}
        for share, measured in found.items()
    }
    zeros = moments(run.metrics, record.ZERO)
    rows = []
    for at, moment in found[0.5].items():
        cells = []
        for layer in layers:
            low, high = (found[share].get(at, {}).get(layer, math.nan) for share in _ends())
            none = words.percent(zeros.get(at, {}).get(layer, math.nan))
            small = f"{_number(low)} – {_number(high)}; zero: {none}"
            cells.append(Cell(_number(moment[layer]), small) if layer in moment else Cell(words.NONE))
        rows.append(Row(Cell(f"{at:,.0f}"), cells))
    stroke = _spread(Look(place), middle)
    svg = _drawn(
        [stroke],
        "log₁₀ r",
        f"stalling-norms-{place + 1}",
        f"{run.name}: how far the gradients of samples lie apart, over the iterations",
        f"At the end the median of log₁₀ r is {_number(stroke.values[-1])}.",
    )
    over = f"In the middle of {words.count(len(layers), 'layer')}" if len(layers) > 1 else f"At {layers[0]}"
    return Plot(
        f"{run.name}: how far gradients lie apart",
        f"r: the norm of a sample’s gradient over the largest, before balancing. {over}: {_quantiles('samples')}. "
        "Gradients that are exactly zero are left out; the table counts them",
        svg,
        [Key(stroke.look, "the median")],
        Table(
            "log₁₀ r, the median over the samples with a gradient, and small what lies between "
            f"{_percents()} of them, and the share of samples without",
            [Column("iteration"), *(Column(layer) for layer in layers)],
            [Group(rows)],
        ),
    )


def _gap(run: RunRecord, place: int) -> Plot | None:
    """The gap between the two largest logits, and where it hides the gradient."""
    found = {share: record.course(run.metrics, record.at_quantile(record.GAP, share)) for share in record.QUANTILES}
    if not found[0.5]:
        return None
    stroke = _spread(Look(place), found)
    rows = [
        Row(Cell(f"{at:,.0f}"), [Cell(_number(found[share].get(at, math.nan))) for share in record.QUANTILES])
        for at in found[0.5]
    ]
    svg = _drawn(
        [stroke],
        "gap between the two largest logits",
        f"stalling-gap-{place + 1}",
        f"{run.name}: the gap between the two largest logits, over the iterations",
        f"At the end the median gap is {_number(stroke.values[-1])}.",
        marked=UNDERFLOW,
    )
    columns = [
        Column(f"{100 * share:g}{words.SPACE}%", "the median" if share == 0.5 else "") for share in record.QUANTILES
    ]
    return Plot(
        f"{run.name}: the logit gap",
        f"Of correctly classified samples: {_quantiles('them')}. Dotted: {UNDERFLOW}, where float32 gradients of "
        "cross-entropy underflow",
        svg,
        [Key(stroke.look, "the median")],
        Table(
            "The gap between the two largest logits that a share of the correctly classified samples does not exceed",
            [Column("iteration"), *columns],
            [Group(rows)],
        ),
    )


def _spread(look: Look, found: dict[float, dict[float, float]]) -> Stroke:
    """The median, in a wide and a narrow band: the quantiles from the outer ones inwards, `found` by quantile."""
    at = [iteration for iteration in found[0.5] if all(iteration in measured for measured in found.values())]
    half = len(record.QUANTILES) // 2
    pairs = zip(record.QUANTILES[:half], reversed(record.QUANTILES[half + 1 :]), strict=True)
    bands = [[(found[low][iteration], found[high][iteration]) for iteration in at] for low, high in pairs]
    return Stroke(look, at, [found[0.5][iteration] for iteration in at], bands)


def _ends() -> tuple[float, float]:
    return record.QUANTILES[0], record.QUANTILES[-1]


def _percents() -> str:
    low, high = _ends()
    return f"{100 * low:g} and {100 * high:g}{words.SPACE}%"


def _quantiles(whom: str) -> str:
    _, low, _, high, _ = record.QUANTILES
    return (
        f"the line is the median, dark what lies between {100 * low:g} and {100 * high:g}{words.SPACE}% of {whom}, "
        f"pale between {_percents()}"
    )


# --- drawing ---------------------------------------------------------------------------------------------------------


def _drawn(
    strokes: list[Stroke],
    label: str,
    name: str,
    title: str,
    text: str,
    reference: dict[float, float] | None = None,
    marked: float = math.nan,
    least: float = math.nan,
) -> Markup:
    """Strokes over the iterations. reference: a dotted course of shares; marked: a dotted level; least: the smallest of
    shares whose axis is logarithmic."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = figures.empty("iteration", label)
        for stroke in strokes:
            for band in stroke.bands:
                low, high = zip(*band, strict=True)
                axes.fill_between(stroke.at, low, high, color=stroke.look.stand_in, alpha=0.16, linewidth=0)
            axes.plot(
                stroke.at,
                stroke.values,
                color=stroke.look.stand_in,
                linestyle=stroke.look.dashes,
                linewidth=0.8 if stroke.thin else stroke.look.width,
                marker=None if stroke.thin else stroke.look.marker or None,
                markevery=max(1, len(stroke.at) // 12),
                markeredgewidth=0,
            )
        if reference:
            axes.plot(list(reference), list(reference.values()), color=INK, linewidth=1.2, linestyle=DOTS)
            axes.set_ylim(-0.02, 1.02)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        if math.isfinite(marked):
            axes.axhline(marked, color=INK, linewidth=1.2, linestyle=DOTS)
        if math.isfinite(least):
            axes.set_yscale("log")
            axes.set_ylim(least, 1.15)
            axes.set_yticks([tick for tick in figures.ONE_TWO_FIVE if least <= tick <= 1])
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return figures.inline(figure, name, title, f"{text} The figures are in the table that follows.")


def _between(values: list[float]) -> str:
    low, high = words.percent(min(values)), words.percent(max(values))
    return low if low == high else f"between {low} and {high}"


def _number(value: float) -> str:
    return words.NONE if math.isnan(value) else f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
