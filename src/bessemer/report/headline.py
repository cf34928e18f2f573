"""What a run is worth, in one figure and one sentence; and what of it cannot be trusted, beside the figure.

Attacks bound robust accuracy from above: the figure is the share of images on which every attack with a bound failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bessemer.records import Evaluation, Finding, RunRecord, Share
from bessemer.report import words
from bessemer.report.comparison import doubts, worst_case_doubts


@dataclass(frozen=True)
class Reservation:
    """That a figure cannot be trusted, and why."""

    verdict: str
    reasons: list[str]


@dataclass(frozen=True)
class Headline:
    """A run's figure, what it counts, and what must be said beside it."""

    place: int
    name: str
    figure: str
    counts: str
    sentence: str
    interval: str = ""
    clean: float | None = None  # shares for the bar
    robust: float | None = None
    low: float = 0.0
    high: float = 0.0
    doubted: bool = False
    reservations: list[Reservation] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def headline(run: RunRecord, place: int) -> Headline:
    """The worst case where there is one; else clean accuracy; else what is missing."""
    if not run.evaluations:
        return Headline(place, run.name, words.NONE, "not evaluated yet", _unmeasured(run))
    judged = [(evaluation, worst) for evaluation in run.evaluations if (worst := evaluation.worst_case())]
    if not judged:
        evaluation, *rest = run.evaluations
        others = [_other(other) for other in rest]
        return _clean(run.name, place, evaluation, others)
    evaluation, worst = judged[0]
    others = [_other(other) for other in run.evaluations if other is not evaluation]
    return _robust(run.name, place, evaluation, worst, others)


def _robust(name: str, place: int, evaluation: Evaluation, worst: Share, others: list[str]) -> Headline:
    clean, doubted = evaluation.clean_accuracy(), worst_case_doubts(evaluation)
    bounded = [rows.name for rows in evaluation.bounded]
    low, high = worst.interval
    return Headline(
        place,
        name,
        words.percent(worst.value),
        f"robust accuracy, worst case of {words.count(len(bounded), 'attack')}",
        f"{words.percent(clean.value)} of {_images(evaluation)} are classified correctly, and "
        f"{words.percent(worst.value)} still are when {words.freedom(evaluation.threat)}.",
        interval=f"95{words.SPACE}% interval {100 * low:.1f} to {words.percent(high)}",
        clean=clean.value,
        robust=worst.value,
        low=low,
        high=high,
        doubted=bool(doubted),
        reservations=[Reservation("This figure cannot be trusted.", _reasons(doubted))]
        if doubted
        else _apart(evaluation),
        others=others,
    )


def _clean(name: str, place: int, evaluation: Evaluation, others: list[str]) -> Headline:
    clean = evaluation.clean_accuracy()
    low, high = clean.interval
    return Headline(
        place,
        name,
        words.percent(clean.value),
        "clean accuracy",
        f"{words.percent(clean.value)} of {_images(evaluation)} are classified correctly. No attack with a "
        f"bound was run, so there is no robust accuracy. {_strongest(evaluation)}",
        interval=f"95{words.SPACE}% interval {100 * low:.1f} to {words.percent(high)}",
        clean=clean.value,
        reservations=_apart(evaluation),
        others=others,
    )


def _apart(evaluation: Evaluation) -> list[Reservation]:
    """Doubts that reach single attacks, but not the figure of the headline."""
    found = {rows.name: doubts(evaluation, rows.name) for rows in evaluation.attacks}
    doubted = [name for name, findings in found.items() if findings]
    if not doubted:
        return []
    figures = "figure" if len(doubted) == 1 else "figures"
    rest = "The worst case rests on another attack." if evaluation.worst_case() else "The clean accuracy stands."
    reasons = list(dict.fromkeys(finding for findings in found.values() for finding in findings))
    return [Reservation(f"The {figures} of {words.listed(doubted)} cannot be trusted. {rest}", _reasons(reasons))]


def _reasons(findings: list[Finding]) -> list[str]:
    """The first doubt in full, the others by name."""
    first, *rest = findings
    figure = f"{first.figure}. " if first.figure else ""
    said = [f"{first.name}: {figure}{first.meaning}"]
    others = [finding.name for finding in rest if finding.name != first.name]
    return said + ([f"also: {words.listed(list(dict.fromkeys(others)))}."] if others else [])


def _strongest(evaluation: Evaluation) -> str:
    """What the attack did that turned most, and of several the one that moved the images least."""
    if not evaluation.attacks:
        return "No attack was run."
    rates = {rows.name: evaluation.success_rate(rows.name) for rows in evaluation.attacks}
    strongest = max(rates, key=lambda name: (rates[name].count, -evaluation.produced(name, "linf")[0]))
    mean, deviation = evaluation.produced(strongest, "linf")
    reach = f", at Linf {words.spread((255 * mean, 255 * deviation), 1)} grey levels" if rates[strongest].count else ""
    return f"{strongest} turned {words.percent(rates[strongest].value)} of the right answers{reach}."


def _other(evaluation: Evaluation) -> str:
    """A further evaluation of the run, on one line."""
    worst = evaluation.worst_case()
    if worst is None:
        return f"Suite {evaluation.suite}: {_strongest(evaluation)}"
    doubted = " (doubt: see the findings)" if worst_case_doubts(evaluation) else ""
    ball = words.threat_text(evaluation.threat)
    return f"Suite {evaluation.suite}{ball and f', {ball}'}: worst case {worst}{doubted}."


def _images(evaluation: Evaluation) -> str:
    source = f" ({evaluation.data})" if evaluation.data else ""
    return f"{words.count(len(evaluation), 'image')}{source}"


def _unmeasured(run: RunRecord) -> str:
    accuracies = [line["validation_accuracy"] for line in run.metrics if "validation_accuracy" in line]
    known = f"Validation accuracy was {words.percent(accuracies[-1])} at the end of training. " if accuracies else ""
    return f"{known}Nothing has attacked this network yet; `bessemer evaluate` does."
