"""The page: gathers what the other files make of the records and hands it to the template.

Everything that reaches the template is escaped there, names of runs and classes included; only figures arrive as
markup. A content security policy in the page forbids scripts and every address outside it.
"""

from __future__ import annotations

import itertools
import shlex
from dataclasses import dataclass, replace
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bessemer.records import Curve, Finding, RunRecord
from bessemer.report import figures, tables, words
from bessemer.report.comparison import AttackKey, Comparison, Entry, comparisons, doubts
from bessemer.report.gallery import galleries
from bessemer.report.headline import headline


@dataclass(frozen=True)
class Measured:
    """One comparison, ready to be drawn."""

    comparison: Comparison
    accuracy: tables.Table
    successes: tables.Table | None
    calls: list[AttackKey]
    notes: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Plot:
    """A figure with its heading, its legend (place, name, doubted) and the table that says the same."""

    heading: str
    conditions: str
    svg: Markup
    legend: list[tuple[int, str, bool]]
    table: tables.Table


@dataclass(frozen=True)
class Noticed:
    """The findings of one evaluation: first what asks for attention, then the checks that found nothing."""

    suite: str
    pressing: list[Finding]
    passed: list[Finding]


def page(runs: list[RunRecord]) -> str:
    """The whole page as HTML."""
    runs = [_bounded_first(run) for run in runs]
    groups = comparisons(runs)
    several = len(groups) > 1
    environment = Environment(
        loader=PackageLoader("bessemer", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["fresh"] = itertools.count(1).__next__  # numbers for captions
    environment.filters["sentence"] = _sentence
    return environment.get_template("page.html").render(
        title=_title(runs),
        runs=list(enumerate(runs)),
        looks=[figures.Look(place) for place in range(len(runs))],
        headlines=[headline(run, place) for place, run in enumerate(runs)],
        measured=[_measured(group) for group in groups],
        plots=_plots(groups, several),
        training=_training(runs),
        noticed=[_noticed(run) for run in runs],
        galleries=galleries(groups),
        several=several,
        provenance=[_provenance(run) for run in runs],
        again=_again(runs),
    )


def _title(runs: list[RunRecord]) -> str:
    if len(runs) == 1:
        return f"How {runs[0].name} holds under attack"
    if len(runs) <= 4:
        return f"How {words.listed([run.name for run in runs])} hold under attack"
    return f"How {len(runs)} networks hold under attack"


def _measured(comparison: Comparison) -> Measured:
    notes = [(entry.name, _flat(entry.evaluation.notes)) for entry in comparison.entries if entry.evaluation.notes]
    if len(notes) == len(comparison.entries) > 1 and all(said == notes[0][1] for _, said in notes):
        notes = [("every run", notes[0][1])]
    return Measured(comparison, tables.accuracy(comparison), tables.successes(comparison), comparison.attacks, notes)


def _plots(groups: list[Comparison], several: bool) -> list[Plot]:
    plots: list[Plot] = []
    for group in groups:
        curves: dict[tuple[str, str], list[tuple[Entry, Curve]]] = {}
        for entry in group.entries:
            for curve in entry.evaluation.curves:
                curves.setdefault((curve.attack, curve.norm), []).append((entry, curve))
        for (attack, norm), drawn in curves.items():
            heading = f"{attack}, {norm}"
            svg = figures.robust_accuracy(
                [(entry.place, curve) for entry, curve in drawn],
                group.threat,
                f"curve-{len(plots) + 1}",
                f"Robust accuracy over the {norm} radius under {attack}",
            )
            legend = [(entry.place, entry.name, bool(doubts(entry.evaluation, attack))) for entry, _ in drawn]
            plots.append(Plot(heading, group.title if several else "", svg, legend, tables.over_eps(drawn)))
    return plots


def _training(runs: list[RunRecord]) -> dict[str, Any] | None:
    if not any(run.metrics for run in runs):
        return None
    return {
        "loss": figures.loss(runs, "loss", "Loss over the iterations"),
        "accuracy": figures.validation_accuracy(runs, "validation", "Validation accuracy over the iterations"),
        "legend": [(place, run.name, False) for place, run in enumerate(runs) if run.metrics],
        "table": tables.training(runs),
    }


def _noticed(run: RunRecord) -> list[Noticed]:
    noticed = []
    for evaluation in run.evaluations:
        # a verdict this page does not know is a note
        found: dict[str, list[Finding]] = {"doubt": [], "note": [], "trust": []}
        for finding in evaluation.findings:
            found.get(finding.verdict, found["note"]).append(finding)
        noticed.append(Noticed(evaluation.suite, found["doubt"] + found["note"], found["trust"]))
    return noticed


def _bounded_first(run: RunRecord) -> RunRecord:
    """The run with the evaluations that have a worst case before those that have none."""
    return replace(run, evaluations=sorted(run.evaluations, key=lambda evaluation: evaluation.worst_case() is None))


def _sentence(text: str) -> str:
    """Text with a capital in front."""
    return text[:1].upper() + text[1:]


def _provenance(run: RunRecord) -> dict[str, Any]:
    parts = [("Training", _origin({}, run.provenance))] if run.provenance else []
    for evaluation in run.evaluations:
        facts = {
            "model": evaluation.model,
            "data": evaluation.data,
            "images": f"{len(evaluation):,}",
            "threat": words.threat_text(evaluation.threat),
            "seed": evaluation.seed,
        }
        parts.append((f"Evaluation, suite {evaluation.suite}", _origin(facts, evaluation.provenance)))
    return {"parts": parts, "recipe": tomli_w.dumps(_without_none(run.recipe)) if run.recipe else ""}


def _origin(facts: dict[str, Any], provenance: dict[str, Any]) -> list[tuple[str, str]]:
    facts = facts | provenance
    if isinstance(seconds := facts.pop("seconds", None), int | float):
        facts["took"] = words.duration(seconds)
    return [(key, text) for key, text in _flat(facts) if text]


def _flat(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _text(value)) for key, value in facts.items()]


def _text(value: Any) -> str:
    """Nested plain data on one line."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key.replace('_', ' ')} {_text(inner)}" for key, inner in value.items() if inner not in ("", None)
        )
    if isinstance(value, list | tuple):
        return ", ".join(_text(inner) for inner in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _without_none(tables_: dict[str, Any]) -> dict[str, Any]:
    """TOML says none by leaving out."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tables_.items()
        if value is not None
    }


def _again(runs: list[RunRecord]) -> dict[str, Any]:
    """The commands that made the records, and the line that makes this page from them."""
    origins = [[run.provenance, *(evaluation.provenance for evaluation in run.evaluations)] for run in runs]
    commands = [str(origin.get("command", "")) for several in origins for origin in several]
    if all(run.recipe for run in runs):
        page_ = f"bessemer report {' '.join(shlex.quote(run.folder or run.name) for run in runs)} --out report.html"
    else:  # a bare evaluation has no folder
        page_ = 'bessemer.report([evaluation, …], "report.html")'
    return {"records": list(dict.fromkeys(filter(None, commands))), "page": page_}
