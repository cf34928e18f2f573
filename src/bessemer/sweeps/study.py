"""The study of a sweep: Optuna's, in SQLite beside the runs or in PostgreSQL, for any number of workers.

Every trial is put into the study before it is needed, and waits there until a worker claims it; of a search a trial's
settings are drawn when it is claimed, of a grid they are known. So N trials are N trials, however many workers there
are, and no two ever do the same one. Whatever changes a state is done while holding one lock for all workers: a file
beside the database, or PostgreSQL's own.

A worker that is killed leaves a running trial behind. Where its folder can be seen, the file that the worker held
locked tells at once that it is gone; from another machine its heartbeat does, after `GRACE` seconds of silence. The
trial then waits again under its old number, and its run goes on from its checkpoint.
"""

from __future__ import annotations

import os
import threading
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from bessemer.errors import FileError, UsageError
from bessemer.randomness import subseed
from bessemer.records.sweep import DONE, FAILED, RUNNING, WAITING, SweepTrial
from bessemer.sweeps.space import Between, Listed, Point
from bessemer.training.recipe import difference

HEARTBEAT, GRACE = 20, 120  # seconds between two signs of life, and without one until a worker counts as dead
ATTEMPTS = 5  # so often is a trial begun whose workers were killed: what kills them may be the trial itself
QUESTION = "bessemer"  # the study's attribute that says what is asked
FIRST = "first"  # the part of the question that says at which point its other settings were read
WORKERS = "workers"  # the folder of the files that living workers hold
_STATES = {
    TrialState.WAITING: WAITING,
    TrialState.RUNNING: RUNNING,
    TrialState.COMPLETE: DONE,
    TrialState.FAIL: FAILED,
    TrialState.PRUNED: FAILED,
}


@dataclass(frozen=True)
class Claim:
    """A trial that is this worker's. run: its place in the sweep; texts: its settings, as `--set` takes them."""

    run: int
    number: int
    texts: dict[str, str]
    identifier: int


class Study:
    """One sweep's trials, as all its workers see them. Use it in a `with`: it holds connections and files.

    storage: `sqlite:///FILE` or `postgresql://…`. name: the study's. folder: the sweep's, on this machine.
    Raises `UsageError` where the address is none or nothing answers there; no message holds a password.
    """

    def __init__(self, storage: str, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._worker = uuid.uuid4().hex
        self._url = _address(storage)
        self.address = self._url.render_as_string(hide_password=True)
        self._until_closed = ExitStack()

    def __enter__(self) -> Study:
        with ExitStack() as opened:
            self._hold_file(opened)
            opened.enter_context(_quiet())
            text = self._url.render_as_string(hide_password=False)
            lasting: dict[str, Any] = {"pool_pre_ping": True}
            if self._url.get_backend_name() == "sqlite":
                Path(self._url.database or "").parent.mkdir(parents=True, exist_ok=True)
                lasting["connect_args"] = {"timeout": 100}
                self._lock_file: FileLock | None = FileLock(f"{self._url.database}.lock")
            else:
                self._lock_file = None
            try:
                self._locks = sqlalchemy.create_engine(text, poolclass=NullPool)
                opened.callback(self._locks.dispose)
                with self._alone(), warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    self._storage = optuna.storages.RDBStorage(
                        text,
                        lasting,
                        heartbeat_interval=HEARTBEAT,
                        grace_period=GRACE,
                        heartbeat_stale_trial_callback=lambda study, trial: self._put_back(trial),
                    )
            except (SQLAlchemyError, StorageInternalError, RuntimeError, ImportError, OSError) as problem:
                raise UsageError(f"--storage {self.address}: {self._told(problem)}") from None
            opened.callback(self._storage.engine.dispose)
            opened.callback(self._storage.remove_session)
            self._until_closed = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._until_closed.close()

    def begin(self, question: dict[str, Any], maximise: Sequence[bool]) -> None:
        """Make the study, or join the one there is. maximise: of each objective, else it is minimised.

        Raises `UsageError` where the study asks something else.
        """
        with self._answering(), self._alone():
            if self.name not in optuna.get_all_study_names(self._storage):
                directions = [StudyDirection.MAXIMIZE if up else StudyDirection.MINIMIZE for up in maximise]
                optuna.create_study(storage=self._storage, study_name=self.name, directions=directions)
            self.join()
            before = self.question
            if before is None and not self._study.get_trials(deepcopy=False):
                self._study.set_user_attr(QUESTION, question)
            elif before is None:
                raise UsageError(
                    f"--study {self.name}: {self.address} holds a study of that name that is no sweep of Bessemer's; "
                    "choose another name"
                )
            elif differs := difference({**before, FIRST: ""}, {**question, FIRST: ""}):
                raise UsageError(
                    f"{self.folder} holds another sweep: {differs}; repeat its command to go on with it, or choose "
                    "another --out"
                )

    def join(self) -> None:
        """Open the study that is there."""
        with self._answering():
            self._study = optuna.load_study(storage=self._storage, study_name=self.name)
            self._identifier = self._storage.get_study_id_from_name(self.name)

    @property
    def question(self) -> dict[str, Any] | None:
        """What the sweep asks, as the first `begin` was told; None where nobody has begun it."""
        with self._answering():
            if self.name not in optuna.get_all_study_names(self._storage):
                return None
            study = optuna.load_study(storage=self._storage, study_name=self.name)
            return study.user_attrs.get(QUESTION)

    def add(self, points: Iterable[Point]) -> int:
        """Let the points of a grid that are not there yet wait for a worker; returns how many they were."""
        points = list(points)
        distributions = _of_a_grid(points)
        with self._answering(), self._alone():
            latest = self._latest()
            known = {Point({}, trial.user_attrs["values"]).identity for trial in latest.values()}
            new = [point for point in points if point.identity not in known]
            for run, point in enumerate(new, len(latest)):
                self._enqueue(
                    {"run": run, "texts": point.texts, "values": point.values},
                    {key: point.values[key] for key in distributions},
                    distributions,
                )
        return len(new)

    def reserve(self, trials: int) -> int:
        """Let a search have so many trials in all; returns how many were added."""
        with self._answering(), self._alone():
            there = len(self._latest())
            for run in range(there, trials):
                self._enqueue({"run": run})
        return max(0, trials - there)

    def claim(self, axes: Sequence[Between | Listed] = (), seed: int = 0) -> Claim | None:
        """The next trial that waits, which is then this worker's; None where none does.

        axes, seed: of a search, whose settings are drawn now.
        """
        with self._answering(), self._alone():
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting:
                return None
            trial = min(waiting, key=lambda trial: (trial.user_attrs["run"], trial.number))
            identifier = self._id(trial)
            # before the state: a worker that is killed between the two leaves a trial that still waits
            self._storage.set_trial_user_attr(identifier, "worker", self._worker)
            self._storage.record_heartbeat(identifier)
            self._storage.set_trial_state_values(identifier, TrialState.RUNNING)
        run, texts = trial.user_attrs["run"], trial.user_attrs.get("texts")
        if texts is None:
            # one seed a trial: which worker draws, and after which others of its own, changes nothing
            self._study.sampler = optuna.samplers.TPESampler(seed=subseed(seed, run) % 2**32)
            with self._answering():
                live = optuna.trial.Trial(self._study, identifier)
                texts = {axis.key: _drawn(live, axis) for axis in axes}
        return Claim(run, trial.number, texts, identifier)

    def describe(self, claim: Claim, **facts: Any) -> None:
        """Keep facts about a trial under way."""
        with self._answering():
            for key, value in facts.items():
                self._storage.set_trial_user_attr(claim.identifier, key, value)

    def finish(
        self, claim: Claim, measured: dict[str, float], objectives: Sequence[str], reason: str = "", **facts: Any
    ) -> None:
        """Report what a trial measured. reason: why it failed, if it did. facts: kept with it."""
        with self._answering(), self._alone():
            if self._storage.get_trial(claim.identifier).state != TrialState.RUNNING:
                return  # this worker was taken for dead, and another one has the trial
            for key, value in {"measured": measured, **facts}.items():
                self._storage.set_trial_user_attr(claim.identifier, key, value)
            if reason:
                self._storage.set_trial_user_attr(claim.identifier, "reason", reason)
                self._study.tell(claim.number, state=TrialState.FAIL)
            else:
                self._study.tell(claim.number, [measured[name] for name in objectives])

    def give_back(self, claim: Claim) -> None:
        """Let a trial that was stopped wait again, for this worker or another."""
        with self._answering(), self._alone():
            trial = self._storage.get_trial(claim.identifier)
            if trial.state == TrialState.RUNNING:
                self._storage.set_trial_state_values(claim.identifier, TrialState.FAIL)
                self._put_back(trial, killed=False)

    def take_up(self) -> None:
        """Let the trials of dead workers wait again."""
        with self._answering(), self._alone():
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if self._is_gone(trial.user_attrs.get("worker", "")):
                    self._storage.set_trial_state_values(self._id(trial), TrialState.FAIL)
                    self._put_back(trial)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.storages.fail_stale_trials(self._study)

    def trials(self) -> list[SweepTrial]:
        """Every trial as it stands, without its command."""
        with self._answering():
            latest = self._latest()
        return [
            SweepTrial(
                run,
                _STATES[trial.state],
                trial.user_attrs.get("values", {}),
                trial.user_attrs.get("measured", {}),
                trial.user_attrs.get("reason", ""),
                trial.user_attrs.get("seconds"),
            )
            for run, trial in sorted(latest.items())
        ]

    def texts(self) -> dict[int, dict[str, str]]:
        """The settings of every trial that has some, as `--set` takes them."""
        with self._answering():
            return {run: trial.user_attrs.get("texts", {}) for run, trial in self._latest().items()}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes the study, or writes its record, meanwhile."""
        with self._answering(), self._alone():
            yield

    @contextmanager
    def beating(self, claim: Claim) -> Iterator[None]:
        """Give signs of life for a trial meanwhile."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                try:
                    self._storage.record_heartbeat(claim.identifier)
                except (SQLAlchemyError, StorageInternalError):
                    pass  # the next one may get through; what the trial finds is told with an error if nothing does
                finally:
                    self._storage.remove_session()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._lock_file is not None:
            with self._lock_file:
                yield
        else:
            with self._locks.begin() as connection:
                key = zlib.crc32(self.name.encode())
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
                yield

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Complaints of the database as a sentence without a password."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as problem:
            raise FileError(
                f"the study in {self.address} does not answer: {self._told(problem)}; what was trained is kept, and "
                "the same command goes on"
            ) from None

    def _told(self, problem: Exception) -> str:
        """The first line of what the database says."""
        cause = problem.__cause__ if isinstance(problem, StorageInternalError) and problem.__cause__ else problem
        told = str(getattr(cause, "orig", None) or cause).strip().splitlines()
        line = told[0].strip() if told else type(cause).__name__
        if isinstance(problem, ImportError):
            line = f"its driver is missing ({line}); install it with `pip install 'bessemer[sweep]'`"
        secret = self._url.password
        return line.replace(str(secret), "***") if secret else line

    def _hold_file(self, opened: ExitStack) -> None:
        """A locked file that says this worker lives; the lock goes with the process, however that ends."""
        path = self._file(self._worker)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire(timeout=0)
        except OSError as problem:
            raise FileError(f"{self.folder} cannot be written: {problem.strerror}") from problem
        opened.callback(path.unlink, missing_ok=True)
        opened.callback(lock.release)

    def _file(self, worker: str) -> Path:
        return self.folder / WORKERS / f"{worker}.lock"

    def _is_gone(self, worker: str) -> bool:
        """Whether a worker whose file is here holds it no more; of one that works elsewhere nothing can be said."""
        path = self._file(worker)
        if not worker or worker == self._worker or not path.is_file():
            return False
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
                return True
        except Timeout:
            return False

    def _id(self, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._identifier, trial.number)

    def _latest(self) -> dict[int, FrozenTrial]:
        """By run the last trial that Optuna knows of it: a trial that was taken up again has a new number there."""
        trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs["run"]: trial for trial in sorted(trials, key=lambda trial: trial.number)}

    def _put_back(self, trial: FrozenTrial, killed: bool = True) -> None:
        """A trial waits again, as it was drawn; one that was killed too often fails for good."""
        deaths = trial.user_attrs.get("deaths", 0) + killed
        known = trial.user_attrs | {"deaths": deaths}
        facts: dict[str, Any] = {key: known[key] for key in known if key in ("run", "texts", "values", "deaths")}
        if deaths < ATTEMPTS:
            self._enqueue(facts, trial.params, trial.distributions)
        else:
            reason = f"its workers were killed {deaths} times"
            self._study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={**facts, "reason": reason}))

    def _enqueue(
        self,
        facts: dict[str, Any],
        params: dict[str, Any] | None = None,
        distributions: dict[str, BaseDistribution] | None = None,
    ) -> None:
        waiting = optuna.create_trial(
            state=TrialState.WAITING, params=params or {}, distributions=distributions or {}, user_attrs=facts
        )
        self._study.add_trial(waiting)


def default_storage(folder: Path) -> str:
    """SQLite in the sweep's folder."""
    return URL.create("sqlite", database=os.path.abspath(folder / "study.db")).render_as_string()


def _address(storage: str) -> URL:
    """The address of a database. Raises `UsageError`, without repeating what might hold a password."""
    try:
        url = make_url(storage)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UsageError("--storage: that is no address; write postgresql://USER@HOST/DATABASE") from None
    if backend == "postgres":
        backend, url = "postgresql", url.set(drivername="postgresql")
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url
    if backend != "postgresql":
        shown = "memory" if backend == "sqlite" else backend
        raise UsageError(f"--storage: a sweep's study lies in sqlite:///FILE or postgresql://…, not in {shown}")
    # SQLAlchemy's own choice of a driver changes with its version; psycopg2 is the one that `bessemer[sweep]` brings
    return url.set(drivername="postgresql+psycopg2") if url.drivername == "postgresql" else url


def _of_a_grid(points: Sequence[Point]) -> dict[str, BaseDistribution]:
    """How Optuna may know the numbers of a grid. It has no texts that could become more: these it knows as facts."""
    found: dict[str, BaseDistribution] = {}
    for key in points[0].values if points else ():
        values = [point.values[key] for point in points]
        if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            found[key] = IntDistribution(min(values), max(values))
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[key] = FloatDistribution(min(values), max(values))
    return found


def _drawn(trial: optuna.trial.Trial, axis: Between | Listed) -> str:
    """A value of one axis, as `--set` takes it."""
    if isinstance(axis, Listed):
        return str(trial.suggest_categorical(axis.key, list(axis.texts)))
    if axis.whole:
        step = int(axis.step) if axis.step else 1
        low, high = int(axis.low), int(axis.high)
        return str(trial.suggest_int(axis.key, low, high, step=step, log=axis.logarithmic))
    return repr(trial.suggest_float(axis.key, axis.low, axis.high, step=axis.step, log=axis.logarithmic))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing on standard error meanwhile but what went wrong."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
