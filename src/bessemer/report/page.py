"""The page: gathers what the other files make of the records and hands it to the template.

Everything that reaches the template is escaped there, names of runs and classes included; only figures arrive as
markup. A content security policy in the page forbids scripts and every address outside it.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined

from bessemer.records import Evaluation, RunRecord
from bessemer.records.purification import Purification
from bessemer.report import angles, broken, figures, plots, tables, versus, words
from bessemer.report.comparison import AttackKey, Comparison, comparisons
from bessemer.report.gallery import galleries
from bessemer.report.headline import headline
from bessemer.report.lights import light, lights, noticed
from bessemer.report.movement import movement
from bessemer.report.plots import Key
from bessemer.report.specimens import orders
from bessemer.report.stalling import stalling

# what an evaluation notes, and its findings say
IN_WORDS = (
    "predictions_that_change",
    "buffers_change",
    "answers_not_a_number",
    "duplicates",
    "preprocessing",
    "another_answer",
)


@dataclass(frozen=True)
class Measured:
    """One comparison, ready to be drawn."""

    comparison: Comparison
    accuracy: tables.Table
    successes: tables.Table | None
    broken: tables.Table | None
    explained: str
    cascade: bool
    calls: list[AttackKey]
    notes: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Compared:
    """Two networks' weights, and where `bessemer report` finds the comparison: its file, or a folder that holds it."""

    purification: Purification
    place: str = ""


def page(runs: list[RunRecord], compare: bool = False, compared: Sequence[Compared] = ()) -> str:
    """The whole page as HTML.

    compare: with a section that tests the runs against one another. compared: what follows from their weights.
    """
    runs = [_hardest_first(run) for run in runs]
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
    environment.filters["sentence"] = words.sentence
    environment.filters["light"] = light
    contests = versus.contests(groups) if compare else []
    return environment.get_template("page.html").render(
        title=_title(runs, compared),
        runs=list(enumerate(runs)),
        looks=[figures.Look(place) for place in range(len(runs))],
        headlines=[headline(run, place) for place, run in enumerate(runs)],
        compare=compare,
        contests=contests,
        unmatched=versus.unmatched(groups) if compare and not contests else "",
        measured=[_measured(group) for group in groups],
        over_radius=plots.over_radius(groups, several),
        over_distance=plots.over_distance(groups, several),
        over_steps=plots.over_steps(groups, several),
        purifications=[angles.section(one.purification, place) for place, one in enumerate(compared, 1)],
        training=_training(runs),
        stalling=stalling(runs),
        noticed=[noticed(run) for run in runs],
        lights=[lights(one for evaluation in run.evaluations for one in evaluation.findings) for run in runs],
        orders=orders(groups),
        galleries=galleries(groups),
        several=several,
        provenance=[_provenance(run) for run in runs],
        comparing=[_comparing(one.purification) for one in compared],
        again=_again(runs, compare, compared),
    )


def _title(runs: list[RunRecord], compared: Sequence[Compared] = ()) -> str:
    if compared and not any(run.evaluations for run in runs):
        pairs = [f"{one.purification.clean} to {one.purification.robust}" for one in compared]
        return f"What training did to the neurons, from {words.listed(pairs[:4])}"
    if len(runs) == 1:
        return f"How {runs[0].name} holds under attack"
    if len(runs) <= 4:
        return f"How {words.listed([run.name for run in runs])} hold under attack"
    return f"How {len(runs)} networks hold under attack"


def _unsaid(notes: dict[str, Any]) -> dict[str, Any]:
    """The notes that no finding puts into words."""
    return {key: value for key, value in notes.items() if key not in IN_WORDS}


def _measured(comparison: Comparison) -> Measured:
    notes = [(entry.name, said) for entry in comparison.entries if (said := _flat(_unsaid(entry.evaluation.notes)))]
    if len(notes) == len(comparison.entries) > 1 and all(said == notes[0][1] for _, said in notes):
        notes = [("every run", notes[0][1])]
    return Measured(
        comparison,
        tables.accuracy(comparison),
        tables.successes(comparison),
        broken.broken(comparison),
        broken.explained(comparison),
        any(broken.is_cascade(entry.evaluation) for entry in comparison.entries),
        comparison.attacks,
        notes,
    )


def _training(runs: list[RunRecord]) -> dict[str, Any] | None:
    if not any(run.metrics for run in runs):
        return None
    return {
        "loss": figures.loss(runs, "loss", "Loss over the iterations"),
        "accuracy": figures.validation_accuracy(runs, "validation", "Validation accuracy over the iterations"),
        "legend": [Key(figures.Look(place), run.name) for place, run in enumerate(runs) if run.metrics],
        "table": tables.training(runs),
        "movement": movement(runs),
    }


def _hardest_first(run: RunRecord) -> RunRecord:
    """The run with the evaluation first whose worst case rests on most attacks; random draws do not count as one."""

    def rank(evaluation: Evaluation) -> tuple[bool, int]:
        searching = [rows for rows in evaluation.bounded if rows.kind != "random"]
        return evaluation.worst_case() is None, -len(searching)

    return replace(run, evaluations=sorted(run.evaluations, key=rank))


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


def _comparing(purification: Purification) -> tuple[str, list[tuple[str, str]]]:
    facts = {key: getattr(purification, key) for key in ("clean", "robust", "initial", "independent", "relation")}
    what = f"Purification, {purification.clean} → {purification.robust}"
    return what, _origin(facts, purification.provenance)


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


def _again(runs: list[RunRecord], compare: bool, compared: Sequence[Compared]) -> dict[str, Any]:
    """The commands that made the records, and the line that makes this page from them."""
    origins = [[run.provenance, *(evaluation.provenance for evaluation in run.evaluations)] for run in runs]
    origins.append([one.purification.provenance for one in compared])
    commands = [str(origin.get("command", "")) for several in origins for origin in several]
    if all(run.recipe or run.folder for run in runs) and all(one.place for one in compared):
        named = dict.fromkeys([*(run.folder or run.name for run in runs), *(one.place for one in compared)])
        places = " ".join(shlex.quote(place) for place in named)
        page_ = f"bessemer report {places}{' --compare' if compare else ''} --out report.html"
    else:  # a record in memory is in no place that could be named
        what = "evaluation" if runs else "purification"
        page_ = f'bessemer.report([{what}, …], "report.html"{", compare=True" if compare else ""})'
    return {"records": list(dict.fromkeys(filter(None, commands))), "page": page_}
