"""The findings as traffic lights: red for doubt, amber for a note, green where a sign was looked for and is absent.

Each light has its own symbol and word, since colour alone is lost on paper and on many eyes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bessemer.records import Finding, RunRecord
from bessemer.report import words


@dataclass(frozen=True)
class Light:
    """How many findings show one light."""

    verdict: str
    text: str


@dataclass(frozen=True)
class Noticed:
    """The findings of one evaluation: first what asks for attention, then the checks that found nothing."""

    suite: str
    pressing: list[Finding]
    passed: list[Finding]


def noticed(run: RunRecord) -> list[Noticed]:
    """The findings of every evaluation of a run."""
    found = []
    for evaluation in run.evaluations:
        by = {verdict: [one for one in evaluation.findings if light(one) == verdict] for verdict in _NOUNS}
        ball = words.threat_text(evaluation.threat)
        found.append(Noticed(evaluation.suite + (ball and f", {ball}"), by["doubt"] + by["note"], by["trust"]))
    return found


def light(finding: Finding) -> str:
    """Its verdict; one that this page does not know is a note."""
    return finding.verdict if finding.verdict in _NOUNS else "note"


def lights(findings: Iterable[Finding]) -> list[Light]:
    """How many of each, red first; a light that nothing shows is left out."""
    shown = [light(finding) for finding in findings]
    return [
        Light(verdict, words.count(shown.count(verdict), noun)) for verdict, noun in _NOUNS.items() if verdict in shown
    ]


_NOUNS = {"doubt": "doubt", "note": "note", "trust": "passed check"}
