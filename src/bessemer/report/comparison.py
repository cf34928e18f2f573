"""What may stand in one table: evaluations under one suite, on one data set, against one threat.

Anything else would invite a comparison that the records do not carry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bessemer.records import AttackRows, Evaluation, Finding, RunRecord
from bessemer.report import words


@dataclass(frozen=True)
class Entry:
    """One run in a comparison; `place` is the run's place on the page, and gives it its colour."""

    place: int
    name: str
    evaluation: Evaluation

    def rows(self, attack: AttackKey) -> AttackRows | None:
        """What this attack did to this run; None where it was not tried."""
        return next((rows for rows in self.evaluation.attacks if AttackKey.of(rows) == attack), None)


@dataclass(frozen=True)
class AttackKey:
    """Two runs met the same attack if name, call and ball agree."""

    name: str
    call: str
    kind: str
    threat: str
    norm: str = ""

    @classmethod
    def of(cls, rows: AttackRows) -> AttackKey:
        """The key of some rows."""
        return cls(rows.name, rows.attack, rows.kind, rows.threat, rows.norm)

    @property
    def reach(self) -> str:
        """How far the attack may go, in words."""
        ball = words.threat_text(self.threat)
        if self.kind == "minimal":
            nearest = f"nearest wrong answer in {self.norm}" if self.norm else "nearest wrong answer"
            return f"{nearest}, at most {ball}" if ball else f"{nearest}, any distance"
        if self.kind == "random":
            return f"random draws, {ball}" if ball else "random draws"
        return f"within {ball}" if ball else ""


@dataclass(frozen=True)
class Comparison:
    """Evaluations that may be compared."""

    suite: str
    data: str
    threat: str
    entries: list[Entry]

    @property
    def title(self) -> str:
        """The conditions, as a heading."""
        ball = words.threat_text(self.threat)
        return ", ".join(part for part in (f"Suite {self.suite}", self.data and f"data {self.data}", ball) if part)

    @property
    def attacks(self) -> list[AttackKey]:
        """Every attack that any entry met, in the order of the records."""
        return list(dict.fromkeys(AttackKey.of(rows) for entry in self.entries for rows in entry.evaluation.attacks))

    @property
    def images(self) -> str:
        """On which images, and whether they are the same for all."""
        first = self.entries[0].evaluation
        if all(np.array_equal(entry.evaluation.index, first.index) for entry in self.entries):
            shared = ", the same for every run" if len(self.entries) > 1 else ""
            return f"{words.count(len(first), 'image')}{shared}."
        each = words.listed([f"{entry.name} {len(entry.evaluation):,}" for entry in self.entries])
        return f"The runs were not measured on the same images ({each}): compare them with care."


def comparisons(runs: list[RunRecord]) -> list[Comparison]:
    """All evaluations of all runs, sorted into what may be compared, in the order of the runs."""
    found: dict[tuple[str, str, str], list[Entry]] = {}
    for place, run in enumerate(runs):
        for evaluation in run.evaluations:
            conditions = (evaluation.suite, evaluation.data, evaluation.threat)
            found.setdefault(conditions, []).append(Entry(place, run.name, evaluation))
    return [Comparison(*conditions, entries) for conditions, entries in found.items()]


def doubts(evaluation: Evaluation, attack: str) -> list[Finding]:
    """The findings that forbid trusting the figures of an attack: those that name it, and those that name none."""
    return [finding for finding in evaluation.findings if finding.verdict == "doubt" and finding.attack in ("", attack)]


def worst_case_doubts(evaluation: Evaluation) -> list[Finding]:
    """The findings that forbid trusting the worst case.

    A doubt about one attack is answered by another of the suite, itself without doubt, that worked as hard (in forward
    passes) and left no more images standing: the worst case then rests on that one. Where nothing stands there is
    nothing left to doubt.
    """
    worst = evaluation.worst_case()
    if worst is None or worst.count == 0:
        return []
    bounded = evaluation.bounded
    found = {rows.name: doubts(evaluation, rows.name) for rows in bounded}
    doubted = [rows for rows in bounded if found[rows.name]]
    for witness in bounded:
        if not found[witness.name] and all(_at_least(evaluation, witness, other) for other in doubted):
            return []
    return list(dict.fromkeys(finding for findings in found.values() for finding in findings))


def _at_least(evaluation: Evaluation, witness: AttackRows, other: AttackRows) -> bool:
    """Whether one attack worked at least as hard as another, and left no more images standing."""
    as_hard = witness["forwards"].max(initial=0) >= other["forwards"].max(initial=0)
    standing, others = (evaluation.robust_accuracy(rows.name).count for rows in (witness, other))
    return bool(as_hard and standing <= others)
