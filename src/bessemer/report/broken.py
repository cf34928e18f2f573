"""Which attack broke what: how far each one came, what only it found, and what that cost.

In a cascade each attack meets only the images that stood so far: what it decided is exact, and what it could have done
to the others is not known. Costs are means over the images that an attack met.
"""

from __future__ import annotations

import numpy as np

from bessemer.records import NOT_TRIED, AttackRows, Evaluation
from bessemer.report import words
from bessemer.report.comparison import Comparison, Entry
from bessemer.report.tables import Cell, Column, Group, Row, Table, met

COSTS = {"forwards": "forward passes", "backwards": "backward passes", "verifications": "verifications"}


def is_cascade(evaluation: Evaluation) -> bool:
    """Whether some attack was spared images that an earlier one had turned."""
    return any((rows["prediction"] == NOT_TRIED).any() for rows in evaluation.attacks)


def broken(comparison: Comparison) -> Table | None:
    """A group per run, a row per attack, in the order in which they ran; None where there is none to tell apart."""
    evaluations = [entry.evaluation for entry in comparison.entries]
    if not any(evaluation.attacks for evaluation in evaluations):
        return None
    cascade = any(is_cascade(evaluation) for evaluation in evaluations)
    nearest = not any(evaluation.bounded for evaluation in evaluations)
    if nearest:
        columns = [Column("turned", "of the images it met"), Column("only this one")]
    elif cascade:
        columns = [Column("met", "what still stood")]
    else:
        columns = [Column("turned in all"), Column("only this one")]
    asked = [cost for cost in COSTS if any(_spends(evaluation, cost) for evaluation in evaluations)]
    costs = [Column(COSTS[cost], "mean per image met") for cost in asked]
    several = len(comparison.entries) > 1
    return Table(
        "What each attack did to the images, and the passes it spent on each that it met",
        [Column("attack"), _share_head(nearest), *columns, *costs],
        [
            Group(
                _rows(entry, cascade, nearest, asked),
                Cell(entry.name) if several else Cell(""),
                entry.place if several else -1,
            )
            for entry in comparison.entries
        ],
    )


def explained(comparison: Comparison) -> str:
    """What the order of the attacks means for the table."""
    evaluations = [entry.evaluation for entry in comparison.entries]
    if any(is_cascade(evaluation) for evaluation in evaluations):
        return (
            "A cascade: later attacks met only the images that still stood, so a small figure far down does not mean a "
            "weak attack, and nobody knows what it would have done to the others."
        )
    if not any(evaluation.bounded for evaluation in evaluations):
        return "Every attack looked for the nearest wrong answer to every image that was right."
    return "Every attack met every image that was right; each bar begins where the attacks before it had come to."


def _spends(evaluation: Evaluation, cost: str) -> bool:
    return any(rows[cost].any() for rows in evaluation.attacks)


def _rows(entry: Entry, cascade: bool, nearest: bool, costs: list[str]) -> list[Row]:
    evaluation = entry.evaluation
    attacks = evaluation.bounded or evaluation.attacks
    decided = np.array(evaluation.decided(), dtype=object)
    turned = {rows.name: evaluation.turned(rows.name) for rows in attacks}
    times = np.sum([*turned.values()], axis=0)
    wrong = int((~evaluation.right).sum())
    empty = [Cell("")] * (1 if cascade and not nearest else 2)
    rows = [Row(Cell("wrong before"), [_stretch(evaluation, 0, wrong), *empty, *_nothing(costs)])]
    reached = wrong
    for attack in attacks:
        first = int((decided == attack.name).sum())
        tried = met(evaluation, attack)
        alone = int((turned[attack.name] & (times == 1)).sum())
        in_all = int(turned[attack.name].sum())
        if nearest:
            bar = _stretch(evaluation, wrong, wrong + _nearest(evaluation, attack))
        else:
            bar = _stretch(evaluation, reached, reached + first)
            reached += first
        cells = [Cell(f"{tried.sum():,}")] if cascade and not nearest else [Cell(f"{in_all:,}"), Cell(f"{alone:,}")]
        rows.append(Row(Cell(attack.name), [bar, *cells, *(Cell(words.mean(attack[cost][tried])) for cost in costs)]))
    standing = int((evaluation.right & (times == 0)).sum())
    bar = _stretch(evaluation, len(evaluation) - standing, len(evaluation))
    return [*rows, Row(Cell("stands"), [bar, *empty, *_nothing(costs)], total=True)]


def _share_head(nearest: bool) -> Column:
    if nearest:
        return Column("nearest", "to how many of all images no attack of its norm found a nearer wrong answer")
    return Column("turned first", "in this order, of all images")


def _nearest(evaluation: Evaluation, attack: AttackRows) -> int:
    """To how many images no other attack of the same norm found a nearer wrong answer."""
    turned = evaluation.turned(attack.name)
    if attack.norm:
        turned = turned & (evaluation.distances(attack.norm, attack.name) <= evaluation.distances(attack.norm))
    return int(turned.sum())


def _stretch(evaluation: Evaluation, begin: int, end: int) -> Cell:
    total = max(1, len(evaluation))
    share = (end - begin) / total
    return Cell(words.percent(share), words.count(end - begin, "image"), bar=(begin / total, end / total))


def _nothing(costs: list[str]) -> list[Cell]:
    return [Cell("")] * len(costs)
