"""What a sweep found: its trials, each with what was set, what was measured and how it ended.

`OUT/sweep.json` is rewritten whenever a trial ends; a page about it needs nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bessemer.errors import FileError
from bessemer.records.files import read_record, write_record

FILE = "sweep.json"
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


@dataclass(frozen=True)
class Objective:
    """What a sweep asks of each trained network.

    meaning: in words. unit: `share` (of images, 0 to 1), `seconds`, or empty for a plain number. attacked: whether it
    takes an attack to measure.
    """

    name: str
    maximise: bool
    meaning: str
    unit: str = ""
    attacked: bool = False


@dataclass(frozen=True)
class Varied:
    """A setting of the recipe that differs between trials.

    asked: the values or the range, as written. logarithmic: whether it was searched on such a scale.
    """

    key: str
    asked: str
    logarithmic: bool = False


@dataclass(frozen=True)
class SweepTrial:
    """One point: a run in the folder `trial-NNNN` of the sweep.

    values: by setting, as the complete recipe holds it; empty of a search's trial that has not begun. measured: by
    objective. reason: why it failed. seconds: what its training took. command: what trains it alone.
    """

    run: int
    state: str
    values: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float | None = None
    command: str = ""

    @property
    def name(self) -> str:
        """The folder of its run."""
        return f"trial-{self.run:04d}"


@dataclass(frozen=True)
class Sweep:
    """A whole sweep. search: whether its points were searched for, not laid out as a grid; judge: how it measured.

    study, storage: Optuna's name for it, and where that lies, without a password.
    """

    name: str
    recipe: str
    search: bool
    varied: list[Varied]
    objectives: list[Objective]
    judge: dict[str, Any]
    trials: list[SweepTrial]
    study: str = ""
    storage: str = ""
    folder: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> list[SweepTrial]:
        """The trials of which everything was measured."""
        return [trial for trial in self.trials if trial.state == DONE]

    def best(self, objective: Objective) -> SweepTrial | None:
        """The trial that does best in one objective, the first of equals; None where none is done."""
        sign = -1 if objective.maximise else 1
        return min(self.done, key=lambda trial: sign * trial.measured[objective.name], default=None)

    def front(self, objectives: Sequence[Objective] = ()) -> list[SweepTrial]:
        """The Pareto front: the trials that no other one equals or beats in every objective and beats in one.

        objectives: those to be looked at; all of the sweep's unless given.
        """
        looked_at = list(objectives) or self.objectives
        costs = [[(-1 if one.maximise else 1) * trial.measured[one.name] for one in looked_at] for trial in self.done]
        return [
            trial
            for trial, cost in zip(self.done, costs, strict=True)
            if not any(_beats(other, cost) for other in costs)
        ]

    def write(self, folder: Path) -> Path:
        """Write `sweep.json`, with its digest; returns the path. Raises `FileError`."""
        path = folder / FILE
        write_record(path, {"kind": "sweep", **asdict(self)})
        return path

    @classmethod
    def read(cls, path: str | Path) -> Sweep:
        """The sweep in a file or folder. Raises `FileError` where the file is missing, damaged or of another kind."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        record = read_record(path)
        try:
            if record.pop("kind") != "sweep":
                raise KeyError("kind")
            return cls(
                **{
                    **record,
                    "varied": [Varied(**one) for one in record["varied"]],
                    "objectives": [Objective(**one) for one in record["objectives"]],
                    "trials": [SweepTrial(**one) for one in record["trials"]],
                }
            )
        except (KeyError, TypeError) as problem:
            raise FileError(f"{path} is no sweep of this version of Bessemer: {problem}") from problem


def _beats(one: list[float], other: list[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
