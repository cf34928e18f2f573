"""The section on purification: what two networks share neuron by neuron, as tables, histograms and bars.

Colour means a pair of weights here, not a run: the legends say which. Random directions are drawn in ink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import matplotlib.style
import numpy as np

from bessemer.records.purification import (
    SHOWN_RANKS,
    UNRELATED,
    Layer,
    Purification,
    Values,
    below_by_chance,
    chance,
)
from bessemer.report import figures, words
from bessemer.report.figures import INK, STYLE, Look
from bessemer.report.plots import Key, Plot
from bessemer.report.tables import QUANTILES, Cell, Column, Group, Row, Table, quantile

BINS = np.linspace(0, 1, 26)
OPEN = 6  # so many layers are drawn in an open list


@dataclass(frozen=True)
class Edge(Look):
    """The outline of a histogram: dashes tell it apart, and no marks."""

    marker = outline = ""


@dataclass(frozen=True)
class Ink(Edge):
    """What nobody measured: a dotted line in the page's ink."""

    colour = "currentColor"
    stand_in = INK
    dashes = (0, (1.5, 1.5))


CHANCE = Key(Ink(0), "random directions")


@dataclass(frozen=True)
class Pair:
    """Two weights of each neuron: the column of the record that holds their theta, its symbol, and whose they are."""

    column: str
    symbol: str
    weights: str
    look: Look


PAIRS = [
    Pair("clean_robust", "θ(w, w′)", "clean and robust", Edge(2, 0)),
    Pair("initial_clean", "θ(w⁰, w)", "initial and clean", Edge(0, 1)),
    Pair("initial_robust", "θ(w⁰, w′)", "initial and robust", Edge(1, 2)),
    Pair("independent", "θ(w, u)", "clean and independent", Edge(3, 3)),
]


@dataclass(frozen=True)
class Shown:
    """One comparison, ready to be drawn."""

    title: str
    warning: str
    summary: str
    remarks: list[str]
    angles: Table
    ranks: Table
    overall: list[Plot]
    layers: list[Plot]
    open: bool


def section(purification: Purification, place: int) -> Shown:
    """What the page says of one comparison; `place` makes identifiers unique."""
    remarks = list(purification.remarks)
    name = f"purification-{place}"
    return Shown(
        f"{purification.clean} → {purification.robust}",
        words.sentence(remarks.pop(0)) + "." if purification.relation == UNRELATED else "",
        " ".join(_sentences(purification)),
        [f"{words.sentence(remark)}." for remark in remarks],
        _angles(purification),
        _ranks(purification),
        [
            _histogram("All layers", purification, purification.layers, f"{name}-all"),
            *([_bars(purification, f"{name}-ranks")] if any(layer.change for layer in purification.layers) else []),
        ],
        [
            _histogram(layer.name, purification, [layer], f"{name}-{number}")
            for number, layer in enumerate(purification.layers, 1)
        ]
        if len(purification.layers) > 1
        else [],
        len(purification.layers) <= OPEN,
    )


def _sentences(purification: Purification) -> list[str]:
    outweighs = purification.outweighs()
    held = (
        f"In {words.percent(outweighs.value)} of {words.count(outweighs.total, 'neuron')} more of the clean weight "
        "lies along the robust one than across it (β > 0 and ‖βw′‖ > ‖v‖)."
    )
    medians = [
        f"{pair.symbol} {_number(float(np.median(values)))}".replace(" ", words.SPACE)
        for pair in PAIRS
        if len(values := purification.column(pair.column))
    ]
    random = np.concatenate(
        [np.full(layer.outweighs().total, chance(layer.size, 0.5)) for layer in purification.layers]
    )
    beside = f"; of random directions of the same sizes, {_number(float(np.median(random)))}" if len(random) else ""
    sentences = [held, f"Medians over all neurons: {words.listed(medians)}{beside}."] if medians else [held]
    initial = purification.column("initial_clean")
    if len(initial) and np.median(initial) > 0.5:
        sentences.append(
            "Clean training stayed near the initial weights, so a large θ(w, w′) says little here; train longer."
        )
    if not math.isnan(share := purification.explained_at(1)):
        by_chance = _weighted(purification.layers, [layer.by_chance_at(1) for layer in purification.layers])
        sentences.append(
            f"An update of rank 1 in every layer explains {words.percent(share)} of the change of the weights (of a "
            f"random change, {words.percent(by_chance)})."
        )
    return sentences


def _angles(purification: Purification) -> Table:
    measured = [pair for pair in PAIRS if len(purification.column(pair.column))]
    columns = [Column("layer"), *(Column(pair.symbol, pair.weights) for pair in measured)]
    nearest = bool(purification.independent)
    columns += [Column("nearest u", "of the layer")] if nearest else []
    columns += [
        Column("random", "directions"),
        Column("β > 0, ‖βw′‖ > ‖v‖", "of the neurons"),
        Column("‖v‖ / ‖βw′‖"),
    ]
    names = [*(pair.column for pair in measured), *(["nearest_independent"] if nearest else [])]
    rows = [_row(layer, names) for layer in purification.layers]
    caption = (
        "The angles, layer by layer: medians over its neurons, and small what lies between "
        f"{100 * QUANTILES[0]:g} and {100 * QUANTILES[-1]:g}{words.SPACE}% of them. Beneath a layer's name: neurons × "
        "numbers in the weight of each"
    )
    return Table(caption, columns, [Group(rows)])


def _row(layer: Layer, names: list[str]) -> Row:
    live, outweighs = layer.live, layer.outweighs()
    dead = f", {len(layer.dead)} without direction" if layer.dead else ""
    low, middle, high = (_number(chance(layer.size, share)) for share in (QUANTILES[0], 0.5, QUANTILES[-1]))
    return Row(
        Cell(_breakable(layer.name), f"{len(layer):,} × {layer.size:,}{dead}"),
        [
            *(_spread(layer[column][live]) for column in names),
            Cell(middle, f"{low} – {high}"),
            Cell(words.percent(outweighs.value), f"{outweighs.count:,} of {outweighs.total:,}"),
            _spread(layer.ratio),
        ],
    )


def _ranks(purification: Purification) -> Table:
    rows = [
        Row(Cell(_breakable(layer.name), _unchanged(layer)), [_bar(layer, rank) for rank in SHOWN_RANKS])
        for layer in purification.layers
    ]
    columns = [Column("layer"), *(Column(f"rank {rank}", "small: by chance") for rank in SHOWN_RANKS)]
    caption = (
        "How much of the squared change ‖W′ − W‖² an update of low rank explains, and of a random matrix of that shape"
    )
    return Table(caption, columns, [Group(rows)])


def _unchanged(layer: Layer) -> str:
    return "" if layer.change else "not changed"


def _bar(layer: Layer, rank: int) -> Cell:
    share = layer.explained_at(rank)
    if math.isnan(share):
        return Cell(words.NONE)
    if rank >= min(len(layer), layer.size):
        return Cell(words.percent(1), "full rank", bar=(0, 1))
    return Cell(words.percent(share), words.percent(layer.by_chance_at(rank)), bar=(0, share))


# --- figures ---------------------------------------------------------------------------------------------------------


def _histogram(heading: str, purification: Purification, layers: list[Layer], name: str) -> Plot:
    """How theta is distributed over the neurons of some layers, beside random directions."""
    measured = [(pair, values) for pair in PAIRS if len(values := _pooled(layers, pair.column))]
    neurons = sum(layer.outweighs().total for layer in layers)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = figures.empty("θ", "share of neurons (%)")
        for pair, values in measured:
            shares = 100 * np.histogram(values, BINS)[0] / len(values)
            if pair is PAIRS[0]:
                axes.stairs(shares, BINS, fill=True, color=pair.look.stand_in, alpha=0.16)
            axes.stairs(shares, BINS, color=pair.look.stand_in, linestyle=pair.look.dashes, linewidth=1.8)
        axes.stairs(_by_chance(layers), BINS, color=INK, linestyle=CHANCE.look.dashes, linewidth=1)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        medians = [f"The median of {pair.symbol} is {_number(float(np.median(values)))}." for pair, values in measured]
        text = " ".join(
            [f"Histograms over {neurons:,} neurons.", *medians, "The figures are in the table that follows."]
        )
        svg = figures.inline(figure, name, f"θ of {purification.clean} and {purification.robust}, {heading}", text)
    legend = [
        Key(pair.look, f"{pair.symbol} {pair.weights}" if len(layers) > 1 else pair.symbol) for pair, _ in measured
    ]
    return Plot(heading, words.count(neurons, "neuron"), svg, [*legend, CHANCE], _quantiles(measured, layers))


def _pooled(layers: list[Layer], column: str) -> Values:
    values = np.concatenate([layer[column][layer.live] for layer in layers])
    return values[~np.isnan(values)]


def _by_chance(layers: list[Layer]) -> Values:
    """The share of random directions in each bin, in percent; every layer as often as it has neurons."""
    counts = np.array([layer.outweighs().total for layer in layers], np.float64)
    shares = np.array([np.diff(below_by_chance(layer.size, BINS)) for layer in layers])
    return np.asarray(100 * counts @ shares / max(1.0, counts.sum()))


def _quantiles(measured: list[tuple[Pair, Values]], layers: list[Layer]) -> Table:
    columns = [Column(f"{100 * share:g}{words.SPACE}%", "the median" if share == 0.5 else "") for share in QUANTILES]
    rows = [
        Row(Cell(pair.symbol), [Cell(_number(quantile(values.tolist(), share))) for share in QUANTILES])
        for pair, values in measured
    ]
    if len(layers) == 1:
        rows.append(Row(Cell(CHANCE.name), [Cell(_number(chance(layers[0].size, share))) for share in QUANTILES]))
    return Table("The θ that a share of the neurons does not exceed", [Column("pair"), *columns], [Group(rows)])


def _bars(purification: Purification, name: str) -> Plot:
    """How much of the change of all layers an update of each rank explains, before and after rescaling each neuron."""
    layers = [layer for layer in purification.layers if layer.change]
    ranks = max((layer.ranks for layer in layers), key=len)
    change = [100 * _weighted(layers, [layer.explained_at(rank) for layer in layers]) for rank in ranks]
    norms = [float(((layer["removed"] * layer["clean_norm"])[layer.live] ** 2).sum()) for layer in layers]
    removed = [100 * _weighted(layers, [layer.removed_at(rank) for layer in layers], norms) for rank in ranks]
    random = [100 * _weighted(layers, [layer.by_chance_at(rank) for layer in layers]) for rank in ranks]
    places = np.arange(len(ranks))
    looks = Look(4, bold=True), Look(5, bold=True)  # colours that no pair has
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = figures.empty("rank", "of the squared norm (%)")
        axes.bar(places - 0.2, change, 0.4, color=looks[0].stand_in)
        axes.bar(places + 0.2, removed, 0.4, color=looks[1].stand_in)
        axes.stairs(
            random,
            np.arange(len(ranks) + 1) - 0.5,
            color=INK,
            linestyle=CHANCE.look.dashes,
            linewidth=1.4,
            baseline=None,
        )
        axes.set_ylim(0, 102)
        axes.set_xticks(places, [str(rank) for rank in ranks])
        text = (
            f"Bars for ranks 1 to {ranks[-1]}: an update of rank 1 explains {change[0]:.1f} % of the change, by chance "
            f"{random[0]:.1f} %. The figures are in the table that follows."
        )
        svg = figures.inline(figure, name, f"Explained by rank, {purification.clean} and {purification.robust}", text)
    named = ["the change W′ − W", "the removed part V = W − βW′"]
    rows = [
        Row(Cell(label), [Cell(f"{value:.1f}") for value in values])
        for label, values in zip([*named, "a random change"], [change, removed, random], strict=True)
    ]
    return Plot(
        "How much an update of low rank explains",
        "all layers, each with the weight of its change",
        svg,
        [Key(looks[0], named[0]), Key(looks[1], named[1]), Key(CHANCE.look, "a random change")],
        Table(
            "Share of the squared norm, in percent",
            [Column("what"), *(Column(f"rank {rank}") for rank in ranks)],
            [Group(rows)],
        ),
    )


def _weighted(layers: list[Layer], shares: list[float], norms: list[float] | None = None) -> float:
    """The share of a whole from those of its layers; `norms`, of the changes unless given, are their squared norms."""
    weights = np.array(norms or [layer.change for layer in layers])
    known = ~np.isnan(shares) & (weights > 0)
    return float(np.array(shares)[known] @ weights[known] / weights[known].sum()) if known.any() else math.nan


# --- numbers ---------------------------------------------------------------------------------------------------------


def _spread(values: Values) -> Cell:
    measured = values[~np.isnan(values)].tolist()
    if not measured:
        return Cell(words.NONE)
    low, high = quantile(measured, QUANTILES[0]), quantile(measured, QUANTILES[-1])
    return Cell(_number(quantile(measured, 0.5)), f"{_number(low)} – {_number(high)}")


def _breakable(name: str) -> str:
    """A layer's name that a narrow column may break after a dot."""
    return name.replace(".", ".\N{ZERO WIDTH SPACE}")


def _number(value: float) -> str:
    """`0.93`, `0.042`, `12.4`."""
    if math.isinf(value):
        return "infinite"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
