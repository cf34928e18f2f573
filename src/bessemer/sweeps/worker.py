"""A worker: claims trials until none is left, trains and judges each in its folder, and reports what it measured.

`bessemer sweep` is one itself, or starts several as processes of their own, which run `main`.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bessemer.errors import (
    BessemerError,
    DivergedError,
    OutOfMemoryError,
    OverfittedError,
    RunInUseError,
    UsageError,
)
from bessemer.records import provenance
from bessemer.records.sweep import DONE, FAILED, RUNNING, Sweep, Varied
from bessemer.sweeps import space
from bessemer.sweeps.objective import Interrupted, Judge, carry_out, objective
from bessemer.sweeps.space import Between, Listed
from bessemer.sweeps.study import Claim, Study
from bessemer.training import Recipe
from bessemer.training.recipe import difference

_PATIENCE = 1.0  # seconds between two looks at trials that others have


@dataclass(frozen=True)
class Standing:
    """How far a sweep is. running: trials under way, of all workers; share: what is done of them, in trials."""

    done: int
    failed: int
    running: int
    total: int
    share: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a worker finds its work, and what it works with.

    recipe, changes: as the command names them. keys: the settings that are varied, in the order to show them in.
    """

    storage: str
    study: str
    folder: Path
    recipe: str
    changes: tuple[str, ...]
    keys: tuple[str, ...]
    device: str = "cpu"
    data_dir: Path | None = None

    def recipe_at(self, texts: Mapping[str, str]) -> Recipe:
        """The recipe of a trial, by its settings as `--set` takes them."""
        return Recipe.named(self.recipe, self._changes(texts))

    def command(self, texts: Mapping[str, str], folder: Path) -> list[str]:
        """What trains a trial alone."""
        words = ["bessemer", "train", self.recipe]
        words += [word for change in self._changes(texts) for word in ("--set", change)]
        words += ["--out", str(folder)]
        words += ["--device", self.device] if self.device != "cpu" else []
        return words + (["--data-dir", str(self.data_dir)] if self.data_dir else [])

    def _changes(self, texts: Mapping[str, str]) -> list[str]:
        return [*self.changes, *(f"{key}={text}" for key, text in texts.items())]


class Task:
    """What a sweep asks, as its study keeps it."""

    def __init__(self, question: dict[str, Any], place: Place) -> None:
        self._question, self._place = question, place
        self.search: bool = question["search"]
        self.seed: int = question["seed"]
        self.judge = Judge(**question["judge"])
        self.objectives = [objective(name, maximise, self.judge) for name, maximise in question["objectives"]]
        self.axes: list[Between | Listed] = []
        if self.search:
            written = [space.searched(f"{key}={asked}") for key, asked in question["varied"]]
            self.axes = space.ranges(place.recipe, place.changes, written)

    def require_unchanged(self) -> None:
        """Refuse (`UsageError`) a recipe that somebody has changed since the sweep began."""
        now = fixed(self._place.recipe_at(self._question["first"]), self._place.keys)
        if differs := difference(self._question["settings"], now):
            raise UsageError(
                f"{self._place.recipe} has changed since the sweep began: {differs}; undo that, or sweep into another "
                "--out"
            )


def fixed(recipe: Recipe, keys: Iterable[str]) -> dict[str, Any]:
    """The complete recipe without what is varied, and without what it says about itself."""
    left: dict[str, Any] = json.loads(json.dumps(recipe.tables))
    for key in (*keys, "about"):
        *sections, last = key.split(".")
        section = left
        for name in sections:
            section = section[name]
        section.pop(last, None)
    return left


def work(
    place: Place,
    *,
    watch: Callable[[Standing], None] = lambda standing: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Do trials until all are done, by whatever worker; returns whether they are. `stop` is asked often.

    A trial whose loss is no longer a number, or that does not fit into memory, fails, and the others go on. Raises what
    training and evaluation refuse otherwise; the trial then waits again.
    """
    with Study(place.storage, place.study, place.folder) as study:
        study.join()
        task = Task(study.question or {}, place)
        while not stop():
            study.take_up()
            claim = study.claim(task.axes, task.seed)
            if claim is None:
                standing = standing_of(study)
                watch(standing)
                if not standing.running:
                    return standing.done + standing.failed == standing.total
                time.sleep(_PATIENCE)
                continue
            before = standing_of(study)

            def told(share: float, before: Standing = before) -> None:
                watch(replace(before, share=share))

            told(0.0)
            if _do(study, claim, task, place, told, stop):
                record(study, task, place).write(place.folder)
            watch(standing_of(study))
        return False


def record(study: Study, task: Task, place: Place) -> Sweep:
    """The sweep as it stands."""
    texts = study.texts()
    trials = [
        replace(trial, command=shlex.join(place.command(texts[trial.run], _apart(place.folder, trial.name))))
        if texts[trial.run]
        else trial
        for trial in study.trials()
    ]
    asked = {axis.key: axis for axis in task.axes}
    varied = [
        Varied(key, asked[key].asked, getattr(asked[key], "logarithmic", False))
        if task.search
        else Varied(key, _listed(trial.values[key] for trial in trials))
        for key in place.keys
    ]
    origin = provenance(seed=task.seed, device=place.device)
    return Sweep(
        name=place.folder.resolve().name,
        recipe=place.recipe,
        search=task.search,
        varied=varied,
        objectives=task.objectives,
        judge=asdict(task.judge),
        trials=trials,
        study=study.name,
        storage=study.address,
        folder=str(place.folder),
        # the command of a sweep may hold a password
        provenance={key: value for key, value in origin.items() if key != "command"},
    )


def standing_of(study: Study) -> Standing:
    """How far the sweep is by now."""
    states = [trial.state for trial in study.trials()]
    return Standing(states.count(DONE), states.count(FAILED), states.count(RUNNING), len(states))


def _apart(folder: Path, trial: str) -> Path:
    """Where a trial goes when it is trained alone: not into the run that is there."""
    return folder.with_name(f"{folder.resolve().name}-{trial}")


def _listed(values: Any) -> str:
    """The values of a grid in a few words."""
    different = list(dict.fromkeys(json.dumps(value) for value in values))
    shown = [*different[:3], "…", different[-1]] if len(different) > 5 else different
    return ", ".join(text.strip('"') for text in shown)


def _do(
    study: Study, claim: Claim, task: Task, place: Place, watch: Callable[[float], None], stop: Callable[[], bool]
) -> bool:
    """One trial; returns whether it came to an end, and not back to those that wait."""
    folder = place.folder / f"trial-{claim.run:04d}"
    names = [one.name for one in task.objectives]
    with study.beating(claim):
        try:
            task.require_unchanged()
            point = space.point(place.recipe, place.changes, claim.texts)
            study.describe(claim, texts=claim.texts, values=point.values)
            measured = carry_out(
                place.recipe_at(claim.texts),
                folder,
                task.objectives,
                task.judge,
                command=place.command(claim.texts, folder),
                device=place.device,
                data_dir=place.data_dir,
                watch=watch,
                stop=stop,
            )
        except (DivergedError, OverfittedError, OutOfMemoryError, torch.OutOfMemoryError) as problem:
            study.finish(claim, {}, names, str(problem).split(";")[0].splitlines()[0])
            return True
        except RunInUseError:  # by a worker that was taken for dead: it finishes what it has begun
            study.give_back(claim)
            time.sleep(_PATIENCE)
            return False
        except Interrupted:
            study.give_back(claim)
            return False
        except BaseException:
            study.give_back(claim)
            raise
        finite = {name: measured[name] for name in names if math.isfinite(measured[name])}
        missing = [name for name in names if name not in finite]
        reason = f"{missing[0]} is not to be had: the attack found nothing to measure" if missing else ""
        study.finish(claim, finite, names, reason, seconds=round(measured["seconds"], 1))
    return True


def main() -> None:
    """One of several workers of a command: its place comes as a line on standard input, and it stops when that ends.

    What it has to say goes to standard output, a JSON object a line: `share` of its trial, or the `error` it ends with.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which then closes our input
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    with os.fdopen(os.dup(0), "rb", buffering=0) as lines:
        told = json.loads(lines.readline())

    def listen() -> None:
        while os.read(0, 1):
            pass
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    place = Place(**{**told, **{key: Path(told[key]) for key in ("folder", "data_dir") if told[key]}})
    last = 0.0

    def watch(standing: Standing) -> None:
        nonlocal last
        if not standing.share or time.monotonic() - last > 0.2:
            last = time.monotonic()
            _say(share=standing.share)

    try:
        work(place, watch=watch, stop=ended.is_set)
    except BessemerError as problem:
        _say(error=str(problem), exit_code=problem.exit_code)
        sys.exit(problem.exit_code)


def _say(**what: Any) -> None:
    with suppress(BrokenPipeError):  # the command is gone, and so is our input
        print(json.dumps(what), flush=True)
