"""A run is a folder: `recipe.toml`, `metrics.jsonl`, `checkpoints/`, `records/`, `report.html`.

This file knows the folder's plain data; weights are the business of `bessemer.training.checkpoint`.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bessemer.errors import FileError, UsageError
from bessemer.records.evaluation import Evaluation
from bessemer.records.files import read_record


@dataclass(frozen=True)
class RunRecord:
    """What a finished run says of itself.

    recipe: the complete recipe as nested tables; empty for a model that was trained elsewhere.
    metrics: the lines of `metrics.jsonl`, each with `iteration` and either `loss`, `lr`, `seconds` (training, a mean
    since the line before), or `validation_loss`, `validation_accuracy`, or how far the neurons have moved (`movement`).
    evaluations: for each network, suite, data set and threat the one with the most images. Networks of one run are its
    branches, and its weights at several moments.
    provenance: of the training; each evaluation has its own. folder: where it was read from, as it was given.
    """

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """The run in a folder. Raises `UsageError` where it is none, `FileError` where a part is damaged."""
        folder = Path(folder)
        recipe = folder / "recipe.toml"
        records = sorted((folder / "records").glob("*.json"))
        if not recipe.is_file() and records:  # a model that was trained elsewhere
            return cls(folder.resolve().name, evaluations=_largest([Evaluation.read(path) for path in records]))
        if not recipe.is_file():
            raise UsageError(
                f"{folder} is no run: it has no recipe.toml; train one with `bessemer train RECIPE --out {folder}`"
            )
        try:
            tables = tomllib.loads(recipe.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise FileError(f"{recipe} is damaged: {problem}") from problem
        origin = folder / "provenance.json"
        return cls(
            name=folder.resolve().name,
            recipe=tables,
            metrics=read_metrics(folder / "metrics.jsonl"),
            evaluations=_largest([Evaluation.read(path) for path in records]),
            provenance=read_record(origin) if origin.is_file() else {},
            folder=str(folder),
        )


def _largest(evaluations: list[Evaluation]) -> list[Evaluation]:
    """For each question the answer from the most images; of equals the exact one, whose name comes first."""
    kept: dict[tuple[str, ...], Evaluation] = {}
    for evaluation in evaluations:
        question = (evaluation.model, evaluation.suite, evaluation.data, evaluation.threat)
        if question not in kept or len(evaluation) > len(kept[question]):
            kept[question] = evaluation
    return list(kept.values())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; a last line that a kill cut off is left out."""
    if not path.is_file():
        return []
    try:
        # what follows the last newline was still being written
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise FileError(f"{path} is damaged: {problem}") from problem
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or "iteration" not in line:
            raise FileError(f"{path} is damaged: its line {number} names no iteration")
    return lines
