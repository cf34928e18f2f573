"""One page that says what runs are worth: figures, tables, pictures and doubts, computed from records alone.

The page is a single HTML file: no network, no script, no model, no clock. The same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from bessemer.errors import UsageError
from bessemer.records import Evaluation, Exhibit, RunRecord, read_record, write_whole
from bessemer.records.purification import PURIFICATIONS, Purification
from bessemer.report.page import Compared, page

__all__ = ["Reportable", "report"]


class Loaded(Protocol):
    """Whatever remembers the run folder it came from, such as a loaded model."""

    @property
    def folder(self) -> str | Path:
        """The run's folder."""


Reportable = str | Path | RunRecord | Evaluation | Purification | Loaded


def report(runs: Sequence[Reportable], path: str | Path, *, compare: bool = False) -> Path:
    """Write one self-contained HTML page about one run, or several side by side; returns its path.

    runs: run folders, files that `save` of an `Evaluation` or a `Purification` wrote, `RunRecord`s, `Evaluation`s,
    `Purification`s, or models that `load` returned, in the order of the page. A run that was judged as several networks
    (branches, last and best weights) stands there as often; it brings the purifications that are kept in its folder.
    compare: also test each run against the first, image by image.
    Raises `UsageError` where an item is no run, `FileError` where a record is damaged or the page cannot be written;
    a page that stood there before is then still there.
    """
    if isinstance(runs, str | Path | RunRecord | Evaluation | Purification) or not isinstance(runs, Sequence):
        raise UsageError(f"report takes a list of runs, not one {type(runs).__name__}; write report([run], path)")
    if not runs:
        raise UsageError("report needs at least one run, and the list is empty")
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file to write, such as {path / 'report.html'}")
    records: list[RunRecord] = []
    compared: list[Compared] = []
    for place, run in enumerate(runs):
        if (loose := _purification(run)) is not None:
            compared.append(loose)
            continue
        kept = _kept(run)
        if not (kept and _only_compared(run)):
            records += map(_as_filed, _networks(_record(run, place)))
        compared += [Compared(Purification.read(file), str(_place(run))) for file in kept]
    if compare and len(records) < 2:
        raise UsageError(f"report can compare two runs or more, and the list holds {'one' if records else 'none'}")
    html = page(_told_apart(records), compare, compared)
    # a folder's name may hold bytes that are no text
    write_whole(path, html.encode("utf-8", "replace"))
    return path


def _purification(run: Reportable) -> Compared | None:
    """A comparison that stands in the list by itself, in memory or as a file."""
    if isinstance(run, Purification):  # as precise as a file keeps it
        return Compared(Purification.from_json(run.to_json()))
    file = _place(run)
    if file is None or file.suffix != ".json" or not file.is_file() or read_record(file).get("kind") != "purification":
        return None
    return Compared(Purification.read(file), str(file))


def _kept(run: Reportable) -> list[Path]:
    """The files of the comparisons that are kept in a run's folder."""
    folder = _place(run)
    return sorted((folder / PURIFICATIONS).glob("*.json")) if folder is not None else []


def _only_compared(run: Reportable) -> bool:
    """Whether a folder holds comparisons, but neither a run nor evaluations."""
    folder = _place(run)
    return (
        folder is not None and not (folder / "recipe.toml").is_file() and not any((folder / "records").glob("*.json"))
    )


def _place(run: Reportable) -> Path | None:
    """Where a run or a record lies; None of what is in memory alone."""
    folder = run if isinstance(run, str | Path) else getattr(run, "folder", "")
    return Path(folder) if folder and isinstance(folder, str | Path) else None


def _record(run: Reportable, place: int) -> RunRecord:
    if isinstance(run, RunRecord):
        return run
    if isinstance(run, Evaluation):
        return RunRecord(name=run.model, evaluations=[run])
    folder = run if isinstance(run, str | Path) else getattr(run, "folder", None)
    if not isinstance(folder, str | Path):
        raise UsageError(
            f"report: item {place} of the list is a {type(run).__name__} without a run folder; "
            "give run folders, files of evaluations, RunRecords, Evaluations or models from bessemer.load"
        )
    if Path(folder).suffix == ".json" and not Path(folder).is_dir():
        evaluation = Evaluation.read(folder)
        return RunRecord(name=evaluation.model, evaluations=[evaluation], folder=str(folder))
    return RunRecord.read(folder)


def _networks(run: RunRecord) -> list[RunRecord]:
    """A run that was judged as several networks (branches, weights of several moments), as a run for each.

    The one that goes by the run's own name comes first, and with it the course of training.
    """
    names = sorted(dict.fromkeys(evaluation.model for evaluation in run.evaluations), key=lambda name: name != run.name)
    if len(names) < 2:
        return [run]
    judged = {name: [each for each in run.evaluations if each.model == name] for name in names}
    first, *others = (replace(run, name=name, evaluations=own) for name, own in judged.items())
    return [first, *(RunRecord(name=other.name, evaluations=other.evaluations) for other in others)]


def _as_filed(run: RunRecord) -> RunRecord:
    """The run with its pictures as precise as a file keeps them, so that memory and file give the same page."""
    return replace(
        run,
        evaluations=[
            replace(
                evaluation,
                gallery=[Exhibit.from_json(exhibit.to_json()) for exhibit in evaluation.gallery],
                specimens=[Exhibit.from_json(exhibit.to_json()) for exhibit in evaluation.specimens],
            )
            for evaluation in run.evaluations
        ],
    )


def _told_apart(runs: list[RunRecord]) -> list[RunRecord]:
    """The runs with names that differ: a second `bang` becomes `bang (2)`."""
    taken: set[str] = set()
    named = []
    for run in runs:
        name, again = run.name, 1
        while name in taken:
            again += 1
            name = f"{run.name} ({again})"
        taken.add(name)
        named.append(replace(run, name=name))
    return named
