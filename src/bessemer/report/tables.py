"""Tables as data: a caption, column heads, and rows of cells that say where they are doubted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bessemer.records import NOT_TRIED, AttackRows, Evaluation, RunRecord, Share
from bessemer.report import words
from bessemer.report.comparison import AttackKey, Comparison, Entry, doubts, worst_case_doubts


@dataclass(frozen=True)
class Cell:
    """A figure, what stands small beneath it, and whether it can be trusted.

    bar: where a stretch of a bar as wide as all images begins and ends, as shares.
    """

    text: str
    small: str = ""
    doubted: bool = False
    bar: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """A row under its head; `place` is the run it speaks of, -1 where it speaks of none."""

    head: Cell
    cells: list[Cell]
    place: int = -1
    total: bool = False  # set off from the rows above


@dataclass(frozen=True)
class Group:
    """Rows under a common head; an empty head is not shown. `place` as in `Row`."""

    rows: list[Row]
    head: Cell = field(default_factory=lambda: Cell(""))
    place: int = -1


@dataclass(frozen=True)
class Column:
    """A column's head; `place` as in `Row`."""

    text: str
    small: str = ""
    place: int = -1


@dataclass(frozen=True)
class Table:
    """What the template draws. The first column holds the heads of the rows."""

    caption: str
    columns: list[Column]
    groups: list[Group]


def _share(share: Share, doubted: bool = False) -> Cell:
    return Cell(words.percent(share.value), words.interval(share.interval) if share.total else "", doubted)


def _named(comparison: Comparison, attack: AttackKey) -> Cell:
    """The attack's name and reach; its whole call where another attack bears the same name and reach."""
    twins = [other for other in comparison.attacks if (other.name, other.reach) == (attack.name, attack.reach)]
    return Cell(attack.name, attack.reach if len(twins) == 1 else attack.call)


def accuracy(comparison: Comparison) -> Table:
    """A row per attack, a column per run: what share of the images stays right."""
    entries = comparison.entries
    rows = [
        Row(
            Cell("clean", "nobody attacks"),
            [_share(entry.evaluation.clean_accuracy(), bool(doubts(entry.evaluation, "clean"))) for entry in entries],
        )
    ]
    for attack in comparison.attacks:
        rows.append(Row(_named(comparison, attack), [_robust(entry, attack) for entry in entries]))
    if any(entry.evaluation.worst_case() for entry in entries):
        rows.append(
            Row(Cell("worst case", "every attack with a bound"), [_worst(entry) for entry in entries], total=True)
        )
    return Table(
        "Share of all images that are classified correctly, with its 95\N{NO-BREAK SPACE}% interval",
        [
            Column("attack"),
            *(Column(entry.name, words.count(len(entry.evaluation), "image"), entry.place) for entry in entries),
        ],
        [Group(rows)],
    )


def _robust(entry: Entry, attack: AttackKey) -> Cell:
    if entry.rows(attack) is None:
        return Cell("not run")
    return _share(entry.evaluation.robust_accuracy(attack.name), bool(doubts(entry.evaluation, attack.name)))


def _worst(entry: Entry) -> Cell:
    worst = entry.evaluation.worst_case()
    return Cell("not run") if worst is None else _share(worst, bool(worst_case_doubts(entry.evaluation)))


def successes(comparison: Comparison) -> Table | None:
    """A group per attack, a row per run: how often it turned a right answer, and how far it had to go."""
    if not comparison.attacks:
        return None
    with_pass = any(
        not all(math.isnan(score) for score in rows["pass_score"].tolist())
        for entry in comparison.entries
        for rows in entry.evaluation.attacks
    )
    columns = [Column("run"), Column("success rate", "of the right images it met")]
    if with_pass:
        columns.append(Column("PASS", "1 is indistinguishable"))
    columns += [
        Column("Linf", "grey levels"),
        Column("L2", "[0, 1] pixels"),
        Column("all-zero gradients", "in float32"),
    ]
    return Table(
        "How often each attack turned a right answer into a wrong one, and how far it went: "
        "mean ± standard deviation over the examples it produced",
        columns,
        [
            Group(
                [
                    Row(Cell(entry.name), _success(entry, attack, rows, with_pass), entry.place)
                    for entry in comparison.entries
                    if (rows := entry.rows(attack)) is not None
                ],
                _named(comparison, attack),
            )
            for attack in comparison.attacks
        ],
    )


def _success(entry: Entry, attack: AttackKey, rows: AttackRows, with_pass: bool) -> list[Cell]:
    evaluation, name = entry.evaluation, attack.name
    rate = Share(int(evaluation.turned(name).sum()), int(met(evaluation, rows).sum()))
    turned = (
        f"{rate.count:,} of {rate.total:,} {words.interval(rate.interval)}" if rate.total else "none was right before"
    )
    cells = [Cell(words.percent(rate.value), turned, bool(doubts(evaluation, name)))]
    if with_pass:
        score = evaluation.produced(name, "pass_score")
        unmeasured = math.isnan(score[0]) and rate.count > 0
        cells.append(Cell("not measured" if unmeasured else words.spread(score, 3)))
    mean, deviation = evaluation.produced(name, "linf")
    cells.append(Cell(words.spread((255 * mean, 255 * deviation), 1)))
    cells.append(Cell(words.spread(evaluation.produced(name, "l2"), 2)))
    if rows["gradients"].sum() == 0:
        return [*cells, Cell(words.NONE, "asked for none")]
    single, double = evaluation.zero_gradient_share(name), evaluation.zero_in_float64_share(name)
    in_float64 = f"in float64 {words.percent(double.value) if double.total else 'not asked'}" if single.count else ""
    return [*cells, Cell(words.percent(single.value), in_float64)]


def met(evaluation: Evaluation, rows: AttackRows) -> npt.NDArray[np.bool_]:
    """Which images the attack was tried on: those that were right, and in a cascade still stood."""
    tried: npt.NDArray[np.bool_] = evaluation.right & (rows["prediction"] != NOT_TRIED)
    return tried


def over(
    caption: str, over_what: str, told: Callable[[float], str], lines: list[tuple[list[float], list[Share], Column]]
) -> Table:
    """The figures of one plot: a row per value on its axis, a column per line."""
    values = sorted({value for at, _, _ in lines for value in at})
    measured = [dict(zip(at, shares, strict=True)) for at, shares, _ in lines]
    rows = [
        Row(Cell(told(value)), [_share(shares[value]) if value in shares else Cell(words.NONE) for shares in measured])
        for value in values
    ]
    return Table(caption, [Column(over_what), *(column for _, _, column in lines)], [Group(rows)])


QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def quantiles(norm: str, lines: list[tuple[tuple[float, ...], Column]]) -> Table:
    """The figures of a staircase: within which distance so many images have a wrong answer."""
    columns = [
        Column(f"{100 * quantile:g}{words.SPACE}% of images", "the median" if quantile == 0.5 else "")
        for quantile in QUANTILES
    ]
    rows = []
    for distances, column in lines:
        none = Share(sum(math.isinf(distance) for distance in distances), len(distances))
        cells = [Cell(words.distance(norm, quantile(distances, share))) for share in QUANTILES]
        rows.append(Row(Cell(column.text), [*cells, _share(none)], column.place))
    return Table(
        f"Within which {norm} distance a share of all images has a wrong answer; an image that is wrong already has it "
        "at 0",
        [Column("attack" if lines[0][1].place < 0 else "run"), *columns, Column("none found", "at any distance")],
        [Group(rows)],
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so many of them do not exceed; halfway to the next where they divide evenly, as a median is."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = round(share * len(ordered), 9)
    low, high = ordered[max(0, math.ceil(place) - 1)], ordered[min(len(ordered) - 1, math.floor(place))]
    return low if low == high else (low + high) / 2


def training(runs: list[RunRecord]) -> Table:
    """How long each run trained, and where it ended, under attack too where its recipe asked for one."""
    attacked = any("validation_robust_accuracy" in line for run in runs for line in run.metrics)
    rows = []
    for place, run in enumerate(runs):
        if not run.metrics:
            continue
        robust = [_last_and_best(run, "validation_robust_accuracy")] if attacked else []
        seconds = sum(line["seconds"] for line in run.metrics if "seconds" in line)
        rows.append(
            Row(
                Cell(run.name),
                [
                    Cell(f"{max(line['iteration'] for line in run.metrics):,.0f}"),
                    _last(run, "loss"),
                    _last(run, "validation_loss"),
                    _last_and_best(run, "validation_accuracy"),
                    *robust,
                    Cell(words.duration(seconds) if seconds else words.NONE),
                ],
                place,
            )
        )
    heads = ["run", "iterations", "last training loss", "last validation loss", "last validation accuracy"]
    heads += [*(["last validation accuracy under attack"] if attacked else []), "time"]
    return Table("Where training ended", [Column(head) for head in heads], [Group(rows)])


def _last_and_best(run: RunRecord, key: str) -> Cell:
    found = [(line[key], line["iteration"]) for line in run.metrics if key in line]
    if not found:
        return Cell(words.NONE)
    best, iteration = max(found, key=lambda pair: (pair[0], -pair[1]))
    return Cell(words.percent(found[-1][0]), f"best {words.percent(best)}, iteration {iteration:,.0f}")


def _last(run: RunRecord, key: str) -> Cell:
    values = [line[key] for line in run.metrics if key in line]
    return Cell(f"{values[-1]:.4g}" if values and math.isfinite(values[-1]) else words.NONE)
