"""Tables as data: a caption, column heads, and rows of cells that say where they are doubted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bessemer.records import AttackRows, Curve, RunRecord, Share
from bessemer.report import words
from bessemer.report.comparison import AttackKey, Comparison, Entry, doubts, worst_case_doubts


@dataclass(frozen=True)
class Cell:
    """A figure, what stands small beneath it, and whether it can be trusted."""

    text: str
    small: str = ""
    doubted: bool = False


@dataclass(frozen=True)
class Row:
    """A row under its head; `place` is the run it speaks of, -1 where it speaks of none."""

    head: Cell
    cells: list[Cell]
    place: int = -1
    total: bool = False  # set off from the rows above


@dataclass(frozen=True)
class Group:
    """Rows under a common head; an empty head is not shown."""

    rows: list[Row]
    head: Cell = field(default_factory=lambda: Cell(""))


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
    columns = [Column("run"), Column("success rate", "of the images right before")]
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
    rate = evaluation.success_rate(name)
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


def over_eps(curves: list[tuple[Entry, Curve]]) -> Table:
    """The figures of one plot: a row per radius, a column per run."""
    norm = curves[0][1].norm
    radii = sorted({eps for _, curve in curves for eps in curve.eps})
    return Table(
        f"Robust accuracy over the {norm} radius, with its 95\N{NO-BREAK SPACE}% interval",
        [Column("radius"), *(Column(entry.name, "", entry.place) for entry, _ in curves)],
        [Group([Row(Cell(words.radius(norm, eps)), [_at(curve, eps) for _, curve in curves]) for eps in radii])],
    )


def _at(curve: Curve, eps: float) -> Cell:
    if eps not in curve.eps:
        return Cell(words.NONE)
    return _share(Share(curve.robust[curve.eps.index(eps)], curve.total))


def training(runs: list[RunRecord]) -> Table:
    """How long each run trained, and where it ended."""
    rows = []
    for place, run in enumerate(runs):
        if not run.metrics:
            continue
        accuracies = [line["validation_accuracy"] for line in run.metrics if "validation_accuracy" in line]
        best = f"best {words.percent(max(accuracies))}" if accuracies else ""
        seconds = sum(line["seconds"] for line in run.metrics if "seconds" in line)
        rows.append(
            Row(
                Cell(run.name),
                [
                    Cell(f"{max(line['iteration'] for line in run.metrics):,.0f}"),
                    _last(run, "loss"),
                    _last(run, "validation_loss"),
                    Cell(words.percent(accuracies[-1]), best) if accuracies else Cell(words.NONE),
                    Cell(words.duration(seconds) if seconds else words.NONE),
                ],
                place,
            )
        )
    heads = ["run", "iterations", "last training loss", "last validation loss", "last validation accuracy", "time"]
    return Table("Where training ended", [Column(head) for head in heads], [Group(rows)])


def _last(run: RunRecord, key: str) -> Cell:
    values = [line[key] for line in run.metrics if key in line]
    return Cell(f"{values[-1]:.4g}" if values and math.isfinite(values[-1]) else words.NONE)
