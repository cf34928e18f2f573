"""Many trials of one recipe: checked before anything starts, carried out by any number of workers, gone on with later.

OUT/trial-0000/    a run each, as `bessemer train` makes it, with records of its evaluation
    study.db       Optuna's study, unless that lies in PostgreSQL
    sweep.json     what was found
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bessemer.errors import BessemerError, ThreatError, UsageError, unknown
from bessemer.evaluation import SUITES
from bessemer.records.sweep import Objective, Sweep
from bessemer.sweeps import space
from bessemer.sweeps.objective import VALIDATION, Judge, objective
from bessemer.threat import Threat, parse
from bessemer.training import Recipe

if TYPE_CHECKING:
    from bessemer.sweeps.worker import Place, Standing

_LOOK = 0.5  # seconds between two looks at the study
_INSTALL = "sweeps need Optuna, which is not installed ({}); install it with `pip install 'bessemer[sweep]'`"
_IN_A_CHILD = "from bessemer.sweeps.worker import main; main()"


class WorkersError(BessemerError, RuntimeError):
    """Workers that ended before the sweep did."""


def sweep(
    recipe: str,
    out: str | Path,
    *,
    changes: Sequence[str] = (),
    grid: Sequence[str] = (),
    search: int | None = None,
    over: Sequence[str] = (),
    maximise: Sequence[str] = (),
    minimise: Sequence[str] = (),
    judge: str | None = None,
    threat: Threat | str | None = None,
    samples: int = 500,
    images: str = VALIDATION,
    seed: int = 0,
    workers: int = 1,
    storage: str | None = None,
    study: str | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
    watch: Callable[[Standing], None] = lambda standing: None,
    stop: Callable[[], bool] = lambda: False,
) -> Sweep:
    """Train a recipe at every point of a grid, or search for its best settings; returns what was found.

    recipe: a name that `bessemer list recipes` shows, or the path of a TOML file. out: the folder; each trial is a run
    in `trial-NNNN` below it. changes: settings of all trials, such as `training.iterations=500`. grid: texts such as
    `method.beta=1.0:1.6:0.05` (the end is included) or `seed=0,1,2`; all combinations are tried. search: so many trials
    in all, over the ranges in `over`: `method.beta=0.5:1.6`, `optimizer.lr=1e-4:1e-1:log`, or a list.

    maximise, minimise: objectives, see `bessemer.sweeps.objective`; unless given `accuracy` and, where the recipe's
    evaluation has a threat, `robust`. judge, threat: the suite and ball of the attacks; the recipe's unless given.
    samples: how many images are attacked. images: `validation`, which a choice of settings should be made on, or
    `test`. seed: of the search.

    workers: processes; one works in this process. storage: `postgresql://…` for several machines; SQLite in the folder
    unless given. study: its name there; the folder's unless given. device: may list several, which workers take in
    turn. watch: told how far the sweep is. stop: asked often; where it says yes, trials are kept as they are.

    The same call goes on where a sweep stopped, and joins one that runs. A grid over the same settings extends the one
    that is there, and a larger `search` goes on searching; any other question is refused.
    Raises `UsageError` where something cannot be, before anything starts.
    """
    folder = Path(out)
    _require_counts(search, workers, samples)
    if bool(grid) == (search is not None):
        raise UsageError("a sweep is either a grid (--grid KEY=VALUES) or a search (--search N --over KEY=LOW:HIGH)")
    if bool(over) != (search is not None):
        raise UsageError("--search N and --over KEY=LOW:HIGH go together: how many trials, over which settings")
    if (folder / "recipe.toml").is_file():
        raise UsageError(f"{folder} is a run; choose another --out for the sweep")
    axes = [space.listed(text) for text in grid]
    points = space.grid(recipe, changes, axes) if grid else []
    ranges = space.ranges(recipe, changes, [space.searched(text) for text in over])
    keys = tuple(axis.key for axis in axes or ranges)
    worker, study_ = _with_optuna()
    devices = [one.strip() for one in device.split(",")]
    address = storage or study_.default_storage(folder)
    places = [
        worker.Place(
            address,
            study or folder.resolve().name,
            folder,
            recipe,
            tuple(changes),
            keys,
            devices[number % len(devices)],
            data_dir,
        )
        for number in range(workers)
    ]
    first = points[0].texts if points else {axis.key: space.ends(axis)[0] for axis in ranges}
    chosen = _judge(places[0].recipe_at(first), judge, threat, samples, images)
    objectives = _objectives(maximise, minimise, chosen)
    with study_.Study(address, places[0].study, folder) as opened:
        before = opened.question or {}
        if set(before.get(study_.FIRST, ())) == set(keys):
            first = before[study_.FIRST]
        question = {
            "search": search is not None,
            "varied": sorted([axis.key, axis.asked] for axis in ranges) if ranges else sorted(keys),
            "objectives": [[one.name, one.maximise] for one in objectives],
            "judge": asdict(chosen),
            "seed": seed,
            "settings": worker.fixed(places[0].recipe_at(first), keys),
            study_.FIRST: first,
        }
        opened.begin(question, [one.maximise for one in objectives])
        if search is None:
            opened.add(points)
        else:
            opened.reserve(search)
        opened.take_up()
        task = worker.Task(question, places[0])
        try:
            if workers == 1:
                worker.work(places[0], watch=watch, stop=stop)
            else:
                _together(places, lambda share: watch(replace(worker.standing_of(opened), share=share)), stop)
        finally:
            with opened.alone():
                found: Sweep = worker.record(opened, task, places[0])
                found.write(folder)
    return found


def _with_optuna() -> tuple[Any, Any]:
    """The modules that need Optuna."""
    try:
        from bessemer.sweeps import study, worker  # noqa: PLC0415  (Bessemer does without unless it sweeps)
    except ImportError as problem:
        raise UsageError(_INSTALL.format(problem)) from problem
    return worker, study


def _require_counts(search: int | None, workers: int, samples: int) -> None:
    for name, count in (("--search", search), ("--workers", workers), ("--samples", samples)):
        if count is not None and count < 1:
            raise UsageError(f"{name} should be at least 1, found {count}")


def _judge(recipe: Recipe, suite: str | None, threat: Threat | str | None, samples: int, images: str) -> Judge:
    """The judge asked for, or the recipe's."""
    chosen = suite or recipe.evaluation.suite
    if chosen not in SUITES:
        raise unknown("--judge: suite" if suite else "evaluation.suite", chosen, SUITES)
    try:
        ball = parse(threat) if isinstance(threat, str) else threat or recipe.evaluation.threat
    except (ThreatError, UsageError) as problem:
        raise UsageError(f"--threat {threat!r}: {problem}") from problem
    return Judge(chosen, str(ball or ""), samples, images)


def _objectives(maximise: Sequence[str], minimise: Sequence[str], judge: Judge) -> list[Objective]:
    asked = [(name, True) for name in maximise] + [(name, False) for name in minimise]
    if not asked:
        asked = [("accuracy", True)]
        if judge.threat and any(getattr(one, "threat", None) for one in judge.attacks().attacks.values()):
            asked.append(("robust", True))
    names = [name for name, _ in asked]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UsageError(f"the objective {name} is named twice")
    return [objective(name, up, judge) for name, up in asked]


def _together(places: Sequence[Place], watch: Callable[[float], None], stop: Callable[[], bool]) -> None:
    """Workers as processes, until they end or are stopped."""
    children: list[subprocess.Popen[bytes]] = []
    heard: list[dict[str, Any]] = [{} for _ in places]
    listeners: list[threading.Thread] = []
    try:
        for place, words in zip(places, heard, strict=True):
            children.append(_started(place, len(places)))
            listeners.append(threading.Thread(target=_listen, args=(children[-1].stdout, words), daemon=True))
            listeners[-1].start()
        while not stop() and any(child.poll() is None for child in children):
            watch(sum(words.get("share", 0.0) for words in heard))
            time.sleep(_LOOK)
    finally:
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        for child, listener in zip(children, listeners, strict=True):
            child.wait()
            listener.join()
            assert child.stdout is not None
            child.stdout.close()
    for words in heard:
        if "error" in words:
            problem = WorkersError(words["error"])
            problem.exit_code = words["exit_code"]
            raise problem
    ended = [child.returncode for child in children]
    if all(ended):
        raise WorkersError(
            f"every worker ended early, the first with {ended[0]}; the same command goes on where they were"
        )


def _started(place: Place, workers: int) -> subprocess.Popen[bytes]:
    """A worker with its share of the cores. It ends when its input does: with this process, however that ends."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(1, cores // workers))}
    child = subprocess.Popen(
        [sys.executable, "-c", _IN_A_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**threads, **os.environ},
    )
    assert child.stdin is not None
    told = {**asdict(place), "folder": str(place.folder), "data_dir": place.data_dir and str(place.data_dir)}
    # not an argument: anybody may read those, and the address may hold a password
    child.stdin.write(json.dumps(told).encode() + b"\n")
    child.stdin.flush()
    return child


def _listen(output: IO[bytes], words: dict[str, Any]) -> None:
    """Keep the last of what a worker says."""
    for line in output:
        words.update(json.loads(line))
