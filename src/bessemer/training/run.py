"""A run is a folder: made by `train`, gone on with after a kill, opened by `load`.

    runs/NAME/recipe.toml       the complete recipe
              metrics.jsonl     a line per logged moment
              checkpoints/      initial.safetensors, step-00000500.safetensors, …; random.safetensors (see `chain`)
              records/          what evaluations found

A run that was killed, at any moment, and resumed on the same hardware with as many threads ends in the same weights,
bit for bit, as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer import data, models
from bessemer.arithmetic import flushed
from bessemer.data import Batches, Dataset, Split
from bessemer.errors import DivergedError, FileError, RunInUseError, UsageError
from bessemer.randomness import subseed
from bessemer.records import provenance, read_metrics, write_record, write_whole
from bessemer.training import chain, trainer
from bessemer.training.checkpoint import Checkpoint, newest, steps
from bessemer.training.optimizers import SGD, parameter_groups
from bessemer.training.recipe import Recipe, difference, read_tables


@dataclass(frozen=True)
class Moment:
    """Where a run stands: iterations made of how many, mean loss since the last line, accuracy on validation images."""

    iteration: int
    iterations: int
    loss: float
    accuracy: float


@flushed()
def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    data_dir: Path | None = None,
    watch: Callable[[Moment], None] = lambda moment: None,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[nn.Module], dict[str, float]] = lambda model: {},
) -> nn.Module:
    """Train a recipe into a run folder; returns the trained model, in evaluation mode, as `load` would.

    resume: go on from the newest checkpoint (or begin, where there is none). watch: called after every update. stop:
    asked after every update; where it says yes, a checkpoint is written and training ends early. note: what else to log
    of the model, as the method prepared it, before the first update and at every validation; it must leave the model as
    it is.
    Raises `UsageError` where the folder holds another run, `RunInUseError` where another process writes to it, and
    `FileError` where something cannot be written or read; what was written before stays.
    """
    folder = Path(folder)
    require_device(device)
    with sole_writer(folder):
        require_same_run(recipe, folder, resume)
        dataset = data.load(recipe.data[0], data_dir, **recipe.data[1]).to(device)
        torch.manual_seed(subseed(recipe.seed, 1))
        model = untrained(recipe, dataset)
        resume = resume and bool(steps(folder))
        origin = {}
        if recipe.init and not resume:
            start = chain.begin(model, recipe)
            origin = {"run": str(Path(recipe.init).resolve()), "iteration": start.iteration}
        model.to(device)
        with ExitStack() as until_done:
            prepared = recipe.method.prepare(model, until_done)
            course = _Course(recipe, folder, prepared, dataset, watch, stop, note, origin)
            write_whole(folder / "recipe.toml", recipe.to_toml().encode())
            if origin:
                chain.keep_random_start(folder, recipe)
            if course.run(resume):
                # over all sessions, should there have been several
                seconds = round(sum(line.get("seconds", 0.0) for line in read_metrics(folder / "metrics.jsonl")), 1)
                facts = provenance(seed=recipe.seed, seconds=seconds, device=device_name(device))
                facts |= {"init": course.origin} if course.origin else {}
                write_record(folder / "provenance.json", {**facts, "threads": torch.get_num_threads()})
    return _opened(model, recipe, folder, course.done)


def load(folder: str | Path, device: str = "cpu") -> nn.Module:
    """The trained model of a run, in evaluation mode.

    Its recipe is `.recipe`, its folder `.folder`, and `.iteration` how far its training has come.

    Raises `UsageError` where the folder is no run, `FileError` where its checkpoint is damaged or another model's.
    """
    folder = Path(folder)
    require_device(device)
    if not (folder / "recipe.toml").is_file():
        raise UsageError(f"{folder} is no run: it has no recipe.toml; `bessemer train RECIPE --out {folder}` makes one")
    recipe = Recipe.from_tables(_tables(folder), folder.resolve().name)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
        model = _laid_out(models.build(recipe.model[0], **recipe.model[1]), recipe)
    checkpoint = Checkpoint.read(newest(folder))
    if checkpoint.model != recipe.model[0]:
        raise FileError(
            f"{folder}: the checkpoint holds a {checkpoint.model}, but the recipe asks for a {recipe.model[0]}"
        )
    checkpoint.restore_weights(model)
    return _opened(model.to(device), recipe, folder, checkpoint.iteration)


class _Course:
    """One run on its way, its model prepared by the method: what is written when."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        model: nn.Module,
        dataset: Dataset,
        watch: Callable[[Moment], None],
        stop: Callable[[], bool],
        note: Callable[[nn.Module], dict[str, float]],
        origin: dict[str, Any],
    ) -> None:
        self.recipe, self.folder, self.model, self.dataset = recipe, folder, model, dataset
        self.watch, self.stop, self.note, self.origin = watch, stop, note, origin
        plan = recipe.training
        self.batches = Batches(dataset.train, plan.batch_size, recipe.seed, plan.shuffle, recipe.augmentation)
        optimizer = recipe.optimizer
        groups = parameter_groups(model, optimizer.factors)
        self.optimizer = SGD(groups, optimizer.lr, optimizer.momentum, optimizer.weight_decay)
        self.losses: list[Tensor] = []
        self.loss = self.accuracy = math.nan
        self.since = time.monotonic()

    def run(self, resume: bool) -> bool:
        """From the start, or from the newest checkpoint, to the end; returns whether anything was left to do."""
        done = self.done = self._go_back() if resume else 0
        if done >= self.recipe.training.iterations:
            return False
        # unbuffered: nothing is left to be written when a full disk ends the run
        self.metrics = (self.folder / "metrics.jsonl").open("r+b" if done else "wb", buffering=0)
        with self.metrics:
            if done == 0:
                for leftover in steps(self.folder):
                    leftover.unlink()
                self._save(0)
                self._note(0)
            else:
                # what was logged after the checkpoint will be logged again
                self.metrics.truncate(self.logged)
                self.metrics.seek(self.logged)
            trainer.loop(
                self.model,
                self.batches,
                self.recipe.method,
                self.optimizer,
                self.recipe.schedule,
                self.recipe.optimizer.lr,
                self.recipe.training.iterations,
                self._after_step,
                done,
            )
        return True

    def _go_back(self) -> int:
        checkpoint = Checkpoint.read(newest(self.folder))
        metrics = self.folder / "metrics.jsonl"
        if not metrics.is_file() or metrics.stat().st_size < checkpoint.metrics:
            raise FileError(
                f"{metrics} is missing or shorter than it was; put it back, or train again into another --out"
            )
        checkpoint.restore(self.model, self.optimizer)
        self.batches.position = checkpoint.position
        self.logged, self.origin = checkpoint.metrics, checkpoint.origin
        return checkpoint.iteration

    def _after_step(self, done: int, loss: Tensor) -> bool:
        plan = self.recipe.training
        self.done = done
        self.losses.append(loss)
        last = done == plan.iterations
        if done % plan.log_every == 0 or last:
            self._log_loss(done)
        if done % plan.validate_every == 0 or last:
            self._validate(done)
            self._note(done)
        stopped = self.stop()
        kept = plan.keep_every and done % plan.keep_every == 0
        if done % plan.checkpoint_every == 0 or kept or last or stopped:
            self._save(done)
        self.watch(Moment(done, plan.iterations, self.loss, self.accuracy))
        return not stopped

    def _log_loss(self, done: int) -> None:
        self.loss = self._finite_loss(done)
        self.losses.clear()
        now = time.monotonic()
        lr = self.optimizer.param_groups[0]["lr"]
        self._log(iteration=done, loss=self.loss, lr=lr, seconds=round(now - self.since, 3))
        self.since = now

    def _finite_loss(self, done: int) -> float:
        """The mean loss since the last line. A checkpoint of weights that are no numbers would evict a good one."""
        loss = torch.stack(self.losses).mean().item() if self.losses else self.loss
        if self.losses and not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at iteration {done}; lower optimizer.lr (now {self.recipe.optimizer.lr:g}) and "
                f"train again into another --out; checkpoints before this are kept in {self.folder}"
            )
        return loss

    def _validate(self, done: int) -> None:
        if len(self.dataset.validation):
            loss, self.accuracy = validated(self.model, self.dataset.validation)
            self._log(iteration=done, validation_loss=loss, validation_accuracy=self.accuracy)

    def _note(self, done: int) -> None:
        if noted := self.note(self.model):
            self._log(iteration=done, **noted)

    def _log(self, **line: Any) -> None:
        try:
            self.metrics.write(json.dumps(line).encode() + b"\n")
        except OSError as problem:
            raise FileError(
                f"{self.metrics.name} cannot be written: {problem.strerror}; the last checkpoint is intact, "
                "free some space and go on with --resume"
            ) from problem

    def _save(self, done: int) -> None:
        self._finite_loss(done)
        # what the checkpoint says is written must be on the disk before it
        os.fsync(self.metrics.fileno())
        name, logged, position = self.recipe.model[0], self.metrics.tell(), self.batches.position
        checkpoint = Checkpoint.take(name, self.model, self.optimizer, done, position, logged, self.origin)
        checkpoint.write(self.folder, keep_every=self.recipe.training.keep_every)


def untrained(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The untrained model, fitted to the data."""
    name, settings = recipe.model
    model = models.build(name, **settings)
    if model.image_shape != dataset.image_shape:
        raise UsageError(
            f"recipe {recipe.name}: the model {name} takes images of shape {model.image_shape}, "
            f"but {dataset.name} has {dataset.image_shape}; change model.name or data.name"
        )
    if model.classes != len(dataset.classes):
        raise UsageError(
            f"recipe {recipe.name}: the model has {model.classes} classes, but {dataset.name} has "
            f"{len(dataset.classes)}; set model.classes = {len(dataset.classes)}"
        )
    if isinstance(model, models.LearnsStatistics):
        model.learn_statistics(dataset.train.images)
    return _laid_out(model, recipe)


def _laid_out(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model in the memory layout it is trained in."""
    if recipe.training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def validated(model: nn.Module, split: Split, size: int = 500) -> tuple[float, float]:
    """Mean loss and accuracy in evaluation mode; the model is left in training mode."""
    model.eval()
    loss = right = 0.0
    with torch.no_grad():
        for start in range(0, len(split), size):
            images, labels = split.at(slice(start, start + size))
            logits = model(images)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(1) == labels).sum().item()
    model.train()
    return loss / len(split), right / len(split)


def _opened(model: nn.Module, recipe: Recipe, folder: Path, iteration: int) -> nn.Module:
    model.eval()
    opened: Any = model
    opened.recipe, opened.folder, opened.iteration = recipe, folder, iteration
    return model


def require_same_run(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Refuse to write over a run, or to go on with one under another recipe."""
    if not (folder / "recipe.toml").exists():
        if any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UsageError(f"{folder} holds other files and is no run; name a new or an empty folder with --out")
        return
    if not resume:
        raise UsageError(f"{folder} holds a run already; go on with --resume, or choose another folder with --out")
    before = Recipe.from_tables(_tables(folder), recipe.name)
    if found := difference(_located(before), _located(recipe)):
        raise UsageError(f"{folder} was trained with another recipe: {found}; choose another folder with --out")


def _located(recipe: Recipe) -> dict[str, Any]:
    """A recipe's tables, the run it starts from written in full: there are several ways to name a folder."""
    return {**recipe.tables, "init": str(Path(recipe.init).resolve()) if recipe.init else ""}


def _tables(folder: Path) -> dict[str, Any]:
    return read_tables(folder / "recipe.toml")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the run for this process; the lock goes with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
        for leftover in folder.glob("**/.*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
    except Timeout:
        raise RunInUseError(f"{folder} is in use by another process; wait for it or choose another folder") from None
    except OSError as problem:
        raise FileError(f"{folder} cannot be written: {problem.strerror}") from problem
    try:
        yield
    finally:
        lock.release()


def require_device(device: str) -> None:
    """Refuse (`UsageError`) a device that torch does not know or this machine does not have."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        here = f"cpu or cuda:0 … cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"device: {device!r} is not here ({str(problem).splitlines()[0]}); use {here}") from problem


def device_name(device: str) -> str:
    """What a device is called in a run's provenance."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
