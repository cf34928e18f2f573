"""Runs against one another on the same images, pair by pair: the first of the page is what the others are held against.

Pairing the images takes out how hard each of them is, so a smaller difference can be told from chance than two separate
intervals would show. The test and the interval are in `paired`. Two attacks are compared where name, call and ball
agree, two worst cases where all their attacks do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bessemer.records import NOT_TRIED, Evaluation, Exhibit
from bessemer.report import words
from bessemer.report.comparison import AttackKey, Comparison, Entry, doubts, worst_case_doubts
from bessemer.report.gallery import Picture, class_name, picture, shrunk
from bessemer.report.paired import SIGNIFICANT, Paired, Sided
from bessemer.report.specimens import SIDE
from bessemer.report.tables import Cell, Column, Group, Row, Table

LISTED = 200  # numbers of images; the records have them all
SHOWN = 8


@dataclass(frozen=True)
class Thumbnail:
    """An image that only one of two runs holds, and what it was turned into in the other."""

    picture: Picture
    text: str


@dataclass(frozen=True)
class Alone:
    """The images that only one of two runs holds in the worst case."""

    sentence: str
    numbers: str
    thumbnails: list[Thumbnail]


@dataclass(frozen=True)
class Versus:
    """One run against another under one set of conditions: what may be claimed, and on what figures."""

    first: Entry
    second: Entry
    claim: str
    grounds: str
    reservation: str = ""
    alone: list[Alone] = field(default_factory=list)


@dataclass(frozen=True)
class Contest:
    """All pairs under one set of conditions, with the tables that hold their differences."""

    title: str
    images: str
    tables: list[Table]
    pairs: list[Versus]


@dataclass(frozen=True)
class Shared:
    """Two runs on the images that both met; the places of these in either evaluation."""

    first: Entry
    second: Entry
    at: tuple[npt.NDArray[Any], npt.NDArray[Any]]

    @classmethod
    def of(cls, first: Entry, second: Entry) -> Shared:
        """The images with the same index and label in both."""
        one, other = first.evaluation, second.evaluation
        _, at_one, at_other = np.intersect1d(one.index, other.index, return_indices=True)
        same = one.label[at_one] == other.label[at_other]
        return cls(first, second, (at_one[same], at_other[same]))

    def __len__(self) -> int:
        return len(self.at[0])

    @property
    def evaluations(self) -> tuple[Evaluation, Evaluation]:
        """Of either run."""
        return self.first.evaluation, self.second.evaluation

    @property
    def attacks(self) -> list[AttackKey]:
        """The attacks that both met, in the order of the first."""
        others = {AttackKey.of(rows) for rows in self.second.evaluation.attacks}
        return [key for rows in self.first.evaluation.attacks if (key := AttackKey.of(rows)) in others]

    @property
    def norms(self) -> list[str]:
        """In which both were asked for the nearest wrong answer."""
        return list(dict.fromkeys(key.norm for key in self.attacks if key.norm and not key.threat))

    @property
    def same_bounded(self) -> bool:
        """Whether the worst case is over the same attacks."""
        one, other = ({AttackKey.of(rows) for rows in evaluation.bounded} for evaluation in self.evaluations)
        return bool(one) and one == other

    def same_minimal(self, norm: str) -> bool:
        """Whether the nearest wrong answer in a norm was sought by the same attacks."""
        one, other = (
            {AttackKey.of(rows) for rows in evaluation.attacks if rows.kind == "minimal" and rows.norm == norm}
            for evaluation in self.evaluations
        )
        return one == other

    def distances(self, norm: str, attack: str = "") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """How far the nearest wrong answer lies in either run: of one attack, or of all in a norm."""
        one, other = (
            evaluation.distances(norm, attack)[places]
            for evaluation, places in zip(self.evaluations, self.at, strict=True)
        )
        return one, other

    def clean(self) -> Paired:
        """Which images are right when nobody attacks."""
        one, other = self.evaluations
        return Paired.of(one.right[self.at[0]], other.right[self.at[1]])

    def survivors(self, attack: str) -> Paired:
        """Which images are right without and under the attack."""
        one, other = self.evaluations
        return Paired.of(one.survivors(attack)[self.at[0]], other.survivors(attack)[self.at[1]])

    def standing(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Which images every attack with a bound left standing, in either run."""
        one, other = (
            np.logical_and.reduce([evaluation.survivors(rows.name) for rows in evaluation.bounded])[places]
            for evaluation, places in zip(self.evaluations, self.at, strict=True)
        )
        return one, other


def contests(comparisons: list[Comparison]) -> list[Contest]:
    """One for each set of conditions under which two runs met some of the same images."""
    found = []
    for comparison in comparisons:
        yardstick, *others = comparison.entries
        pairs = [shared for other in others if len(shared := Shared.of(yardstick, other))]
        if pairs:
            tables = [_shares(pairs), _distances(pairs)]
            found.append(
                Contest(
                    comparison.title,
                    _images(pairs),
                    [table for table in tables if table is not None],
                    [versus for pair in pairs for versus in _versus(pair)],
                )
            )
    return found


def _images(pairs: list[Shared]) -> str:
    yardstick = pairs[0].first.name
    counts = [len(pair) for pair in pairs]
    if len(set(counts)) == 1 and all(len(evaluation) == counts[0] for pair in pairs for evaluation in pair.evaluations):
        return f"Each against {yardstick}, on the same {words.count(counts[0], 'image')}."
    each = words.listed([f"{pair.second.name} {len(pair):,}" for pair in pairs])
    return f"Each against {yardstick}, on the images that both met ({each})."


def _shares(pairs: list[Shared]) -> Table:
    """The shares that stay right: a group per pair, a row per attack that both met."""
    return Table(
        f"How the shares of images that stay right differ: points, Newcombe's 95{words.SPACE}% interval for paired "
        f"shares, McNemar's exact test. Better or worse: p below {SIGNIFICANT}",
        [
            Column("attack"),
            Column("holds", "the first"),
            Column("holds", "the second"),
            Column("difference"),
            Column("only the first", "holds"),
            Column("only the second", "holds"),
            Column("verdict", "on the second"),
        ],
        [
            Group(
                [_clean(pair), *(_attack(pair, key) for key in pair.attacks if key.threat), *_worst(pair)],
                Cell(f"{pair.second.name} against {pair.first.name}"),
                pair.second.place,
            )
            for pair in pairs
        ],
    )


def _clean(pair: Shared) -> Row:
    doubted = any(doubts(evaluation, "clean") for evaluation in pair.evaluations)
    return Row(Cell("clean", "nobody attacks"), _compared(pair.clean(), doubted))


def _attack(pair: Shared, key: AttackKey) -> Row:
    spared = any((evaluation.attack(key.name)["prediction"] == NOT_TRIED).any() for evaluation in pair.evaluations)
    doubted = any(doubts(evaluation, key.name) for evaluation in pair.evaluations)
    reach = f"{key.reach}, after those above" if spared else key.reach
    return Row(Cell(key.name, reach), _compared(pair.survivors(key.name), doubted))


def _worst(pair: Shared) -> list[Row]:
    head = Cell("worst case", "every attack with a bound")
    if pair.same_bounded:
        return [Row(head, _compared(Paired.of(*pair.standing()), _doubted(pair)), total=True)]
    if any(evaluation.bounded for evaluation in pair.evaluations):
        return [Row(replace(head, small="not over the same attacks"), [Cell(words.NONE)] * 6, total=True)]
    return []


def _doubted(pair: Shared) -> bool:
    return any(worst_case_doubts(evaluation) for evaluation in pair.evaluations)


def _compared(paired: Paired, doubted: bool) -> list[Cell]:
    first, second = (paired.both + alone for alone in (paired.only_first, paired.only_second))
    return [
        Cell(words.percent(first / paired.total)),
        Cell(words.percent(second / paired.total)),
        Cell(words.points(paired.difference), words.points_interval(paired.interval)),
        Cell(f"{paired.only_first:,}"),
        Cell(f"{paired.only_second:,}"),
        Cell(paired.verdict, words.chance(paired.p_value), doubted),
    ]


def _distances(pairs: list[Shared]) -> Table | None:
    """How far the nearest wrong answer is, attack by attack; None where no shared attack sought it."""
    groups = [
        Group(
            [*(_farther(pair, key) for key in pair.attacks if key.norm and not key.threat), *_nearest(pair)],
            Cell(f"{pair.second.name} against {pair.first.name}"),
            pair.second.place,
        )
        for pair in pairs
    ]
    if not any(group.rows for group in groups):
        return None
    return Table(
        "Distance of the nearest wrong answer, image by image: on how many it is farther, on how many nearer, and the "
        f"exact sign test. Better or worse: p below {SIGNIFICANT}",
        [
            Column("attack"),
            Column("median", "of the first"),
            Column("median", "of the second"),
            Column("farther", "in the second"),
            Column("nearer", "in the second"),
            Column("verdict", "on the second"),
        ],
        [group for group in groups if group.rows],
    )


def _farther(pair: Shared, key: AttackKey) -> Row:
    doubted = any(doubts(evaluation, key.name) for evaluation in pair.evaluations)
    return _sided(Cell(key.name, key.norm), key.norm, pair.distances(key.norm, key.name), doubted)


def _nearest(pair: Shared) -> list[Row]:
    """All attacks of a norm together, where there are several and both runs met the same."""
    return [
        _sided(Cell("nearest of all", norm), norm, pair.distances(norm), doubted=False, total=True)
        for norm in pair.norms
        if sum(key.norm == norm for key in pair.attacks) > 1 and pair.same_minimal(norm)
    ]


def _sided(
    head: Cell, norm: str, found: tuple[npt.NDArray[Any], npt.NDArray[Any]], doubted: bool, total: bool = False
) -> Row:
    sided = Sided.of(*found)
    return Row(
        head,
        [
            *(Cell(words.distance(norm, float(np.median(distances)))) for distances in found),
            Cell(f"{sided.farther:,}"),
            Cell(f"{sided.nearer:,}"),
            Cell(sided.verdict, words.chance(sided.p_value), doubted),
        ],
        total=total,
    )


def _versus(pair: Shared) -> list[Versus]:
    """The worst case, where there is one; else the nearest wrong answers, norm by norm; else the clean images."""
    if pair.same_bounded:
        return [_in_the_worst_case(pair)]
    norms = [norm for norm in pair.norms if pair.same_minimal(norm)]
    return [_by_distance(pair, norm) for norm in norms] or [
        _told(pair, pair.clean(), "when nobody attacks", _difference(pair.clean()))
    ]


def _by_distance(pair: Shared, norm: str) -> Versus:
    sided = Sided.of(*pair.distances(norm))
    figures = f"farther on {words.count(sided.farther, 'image')}, nearer on {sided.nearer:,}"
    return _told(pair, sided, f"by the {norm} distance of the nearest wrong answer", figures)


def _in_the_worst_case(pair: Shared) -> Versus:
    paired = Paired.of(*pair.standing())
    doubted = [entry.name for entry in (pair.first, pair.second) if worst_case_doubts(entry.evaluation)]
    return replace(
        _told(pair, paired, "in the worst case", _difference(paired)),
        reservation=f"This cannot be trusted: the worst case of {words.listed(doubted)} is in doubt."
        if doubted
        else "",
        alone=_alone(pair),
    )


def _told(pair: Shared, counts: Paired | Sided, what: str, figures: str) -> Versus:
    first, second = pair.first.name, pair.second.name
    claim, than = {
        "better": (f"{second} is better", f"than {first}"),
        "worse": (f"{second} is worse", f"than {first}"),
        "cannot tell": (f"{second} cannot be told", f"from {first}"),
    }[counts.verdict]
    return Versus(pair.first, pair.second, claim, f"{than} {what}: {figures}, {words.chance(counts.p_value)}.")


def _difference(paired: Paired) -> str:
    return f"{words.points(paired.difference)} {words.points_interval(paired.interval)}"


def _alone(pair: Shared) -> list[Alone]:
    first, second = pair.standing()
    sides = [(first & ~second, pair.first, pair.second), (second & ~first, pair.second, pair.first)]
    return [_held(pair, only, holder, loser) for only, holder, loser in sides if only.any()]


def _held(pair: Shared, only: npt.NDArray[Any], holder: Entry, loser: Entry) -> Alone:
    numbers = [int(index) for index in pair.first.evaluation.index[pair.at[0][only]]]
    rest = len(numbers) - LISTED
    more = f" and {rest:,} more" if rest > 0 else ""
    return Alone(
        f"{words.count(len(numbers), 'image')} that {holder.name} holds and {loser.name} does not",
        ", ".join(str(number) for number in numbers[:LISTED]) + more,
        _thumbnails(set(numbers), loser),
    )


def _thumbnails(numbers: set[int], loser: Entry) -> list[Thumbnail]:
    """Pictures of some of these images as the run that lost them saw them, where the records kept any."""
    kept: dict[int, Exhibit] = {}
    for exhibit in loser.evaluation.specimens:
        if exhibit.index in numbers and exhibit.adversarial_prediction not in (exhibit.label, NOT_TRIED):
            kept.setdefault(exhibit.index, exhibit)
    found = []
    for index in sorted(kept)[:SHOWN]:
        exhibit = kept[index]
        label, answer = (
            class_name(loser.evaluation, number) for number in (exhibit.label, exhibit.adversarial_prediction)
        )
        what = f"Image {index} as it turned {loser.name}: {label} taken for {answer}"
        found.append(Thumbnail(picture(shrunk(exhibit.adversarial, SIDE), what, SIDE), f"{index}: {label} → {answer}"))
    return found


def unmatched(comparisons: list[Comparison]) -> str:
    """Why no two of the runs can be compared."""
    conditions = [
        f"{comparison.title} ({words.listed([entry.name for entry in comparison.entries])})"
        for comparison in comparisons
    ]
    return (
        "No two of these runs were evaluated with one suite, on the same images, against one threat: "
        f"{'; '.join(conditions) if conditions else 'none was evaluated at all'}."
    )
