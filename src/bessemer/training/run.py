"""A run is a folder: made by `train`, gone on with after a kill, opened by `load`.

    runs/NAME/recipe.toml       the complete recipe
              metrics.jsonl     a line per logged moment
              checkpoints/      initial.safetensors, step-00000500.safetensors, …; best.safetensors, the weights that
                                did best on validation images; random.safetensors (see `chain`)
              records/          what evaluations found

A run that was killed, at any moment, and resumed on the same hardware with as many threads ends in the same weights,
bit for bit, as one that was not. Under `torchrun` processes share every batch; a run may go on with another number of
them, and ends in the same weights up to rounding. The folder must then be one that all machines see.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from bessemer import data, layers, models, processes
from bessemer.arithmetic import flushed
from bessemer.attacks import Attack
from bessemer.data import Batches, Dataset, Split
from bessemer.errors import (
    DataError,
    DivergedError,
    FileError,
    NoNumbersError,
    OutOfMemoryError,
    ProcessError,
    RunInUseError,
    UsageError,
    unknown,
)
from bessemer.layers.mixture_norm import in_force, routes_in_force
from bessemer.randomness import subseed
from bessemer.records import provenance, read_metrics, write_record, write_whole
from bessemer.training import chain, sharding, trainer
from bessemer.training.average import Average
from bessemer.training.checkpoint import BEST, FOLDER, Checkpoint, newest, steps
from bessemer.training.norms import MixtureNorm
from bessemer.training.optimizers import SGD, parameter_groups
from bessemer.training.recipe import CHECKPOINTS, Recipe, difference, read_tables
from bessemer.training.update import Update


@dataclass(frozen=True)
class Moment:
    """Where a run stands: iterations made of how many, mean loss since the last line, accuracy on validation images.

    robust: the share of validation images that withstood the recipe's attack; NaN where it has none.
    """

    iteration: int
    iterations: int
    loss: float
    accuracy: float
    robust: float = math.nan


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
    """Train a recipe into a run folder; returns the trained model, as `load` does.

    resume: go on from the newest checkpoint (or begin, where there is none). watch: called after every update. stop:
    asked after every update, or now and then where several processes must agree; where it says yes, a checkpoint is
    written and training ends early. note: what else to log of the model, as the method prepared it, before the first
    update and at every validation; it must leave the model as it is.
    Under `torch.distributed`, every process calls it, and the first one writes.
    Raises `UsageError` where the folder holds another run, `RunInUseError` where another process writes to it,
    `DivergedError` where the loss is no number, `OutOfMemoryError`, and `FileError` where something cannot be written
    or read; what was written before stays.
    """
    folder = Path(folder)
    require_device(device)
    with ExitStack() as until_done:
        processes.agreed(lambda: until_done.enter_context(_written_to(recipe, folder, resume)))
        dataset = data.load(recipe.data[0], data_dir, **recipe.data[1]).to(device)
        torch.manual_seed(subseed(recipe.seed, 1))
        model = untrained(recipe, dataset)
        resume = processes.agreed(lambda: resume and bool(steps(folder)))
        origin = {}
        if recipe.init and not resume:
            start = chain.begin(model, recipe)
            origin = {"run": str(Path(recipe.init).resolve()), "iteration": start.iteration}
        model.to(device)
        if processes.place()[1] > 1 and recipe.training.synchronized_norm:
            model = layers.synchronized(model)
        judged = deepcopy(model) if recipe.training.average else None
        prepared = recipe.method.prepare(model, until_done)
        if recipe.training.compile:
            prepared.compile()
        if recipe.training.sharded and processes.place()[1] > 1:
            sharding.spread(prepared)
        course = _Course(recipe, folder, prepared, judged, dataset, watch, stop, note, origin)
        processes.agreed(lambda: _begin(recipe, folder, origin))
        if course.run(resume):
            processes.agreed(lambda: _provenance(recipe, folder, course.origin, device))
    return load(folder, device, "last")


@contextmanager
def _written_to(recipe: Recipe, folder: Path, resume: bool) -> Iterator[None]:
    """Hold the run for this process, which is to write it."""
    with sole_writer(folder):
        require_same_run(recipe, folder, resume)
        yield


def _begin(recipe: Recipe, folder: Path, origin: dict[str, Any]) -> None:
    write_whole(folder / "recipe.toml", recipe.to_toml().encode())
    if origin:
        chain.keep_random_start(folder, recipe)


def _provenance(recipe: Recipe, folder: Path, origin: dict[str, Any], device: str) -> None:
    # over all sessions, should there have been several
    seconds = round(sum(line.get("seconds", 0.0) for line in read_metrics(folder / "metrics.jsonl")), 1)
    facts = provenance(seed=recipe.seed, seconds=seconds, device=device_name(device))
    facts |= {"init": origin} if origin else {}
    several = {"processes": processes.place()[1]} if processes.place()[1] > 1 else {}
    write_record(folder / "provenance.json", {**facts, "threads": torch.get_num_threads(), **several})


def load(folder: str | Path, device: str = "cpu", checkpoint: str = "", branch: str = "") -> nn.Module:
    """The trained model of a run, in evaluation mode.

    checkpoint: `last` or `best` (by validation); as the recipe's `evaluation.checkpoint` says unless given. branch: of
    a mixture norm, which is what becomes of its layers; the one that the recipe's method is judged by unless given.
    Its recipe is `.recipe`, its folder `.folder`, and `.iteration` how far its training has come.

    Raises `UsageError` where the folder is no run, or there is no such checkpoint or branch, `FileError` where its
    checkpoint is damaged or another model's.
    """
    folder = Path(folder)
    require_device(device)
    if not (folder / "recipe.toml").is_file():
        raise UsageError(f"{folder} is no run: it has no recipe.toml; `bessemer train RECIPE --out {folder}` makes one")
    recipe = Recipe.from_tables(_tables(folder), folder.resolve().name)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
        model = _laid_out(recipe.norm.installed(models.build(recipe.model[0], **recipe.model[1])), recipe)
    found = Checkpoint.read(_chosen(folder, checkpoint or recipe.evaluation.checkpoint))
    if found.model != recipe.model[0]:
        raise FileError(f"{folder}: the checkpoint holds a {found.model}, but the recipe asks for a {recipe.model[0]}")
    found.restore_weights(model)
    if branch and not layers.branches(model):
        raise UsageError(f"{folder}: the network has no branches, so there is no {branch!r}")
    if layers.branches(model):
        model = layers.keep_branch(model, branch or recipe.method.branch or layers.branches(model)[0])
    opened: Any = model.eval()
    opened.recipe, opened.folder, opened.iteration = recipe, folder, found.iteration
    return model.to(device)


def branches(recipe: Recipe) -> tuple[str, ...]:
    """The branches of a recipe's network; none where it has no mixture norm."""
    return recipe.norm.branches if isinstance(recipe.norm, MixtureNorm) else ()


def _chosen(folder: Path, checkpoint: str) -> Path:
    """The file of a checkpoint by its name."""
    if checkpoint not in CHECKPOINTS:
        raise unknown("checkpoint", checkpoint, CHECKPOINTS)
    best = folder / FOLDER / BEST
    if checkpoint == "last":
        return newest(folder)
    if not best.is_file():
        raise UsageError(
            f"{folder} has no best checkpoint: nothing was validated yet, or the data has no validation images; "
            "take the last one"
        )
    return best


class _Course:
    """One run on its way, its model prepared by the method: what is written when.

    judged: where the weights are averaged, a network to validate the average with.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        model: nn.Module,
        judged: nn.Module | None,
        dataset: Dataset,
        watch: Callable[[Moment], None],
        stop: Callable[[], bool],
        note: Callable[[nn.Module], dict[str, float]],
        origin: dict[str, Any],
    ) -> None:
        self.recipe, self.folder, self.model, self.judged, self.dataset = recipe, folder, model, judged, dataset
        self.watch, self.stop, self.note, self.origin = watch, stop, note, origin
        self.rank, self.world = processes.place()
        self.branch = recipe.method.branch or next(iter(layers.branches(model)), "")
        plan = recipe.training
        if plan.batch_size % (self.world * plan.accumulation):
            raise UsageError(
                f"batch_size: {plan.batch_size} images cannot be shared out evenly among {self.world} processes with "
                f"{plan.accumulation} parts each; take a multiple of {self.world * plan.accumulation}"
            )
        place = (self.rank, self.world)
        self.batches = Batches(dataset.train, plan.batch_size, recipe.seed, plan.shuffle, recipe.augmentation, place)
        optimizer = recipe.optimizer
        groups = parameter_groups(model, optimizer.factors)
        self.optimizer = SGD(groups, optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov)
        self.update = Update(model, recipe.method, self.optimizer, plan.precision, plan.accumulation)
        self.average = Average(model, plan.average) if plan.average else None
        self.losses: list[Tensor] = []
        self.loss = self.accuracy = self.robust = math.nan
        self.best = -math.inf
        self.since = time.monotonic()

    def run(self, resume: bool) -> bool:
        """From the start, or from the newest checkpoint, to the end; returns whether anything was left to do."""
        done = self.done = self._go_back() if resume else 0
        if done >= self.recipe.training.iterations:
            return False
        self._draw_apart(done)
        with ExitStack() as until_done:
            if self.rank == 0:
                # unbuffered: nothing is left to be written when a full disk ends the run
                metrics = (self.folder / "metrics.jsonl").open("r+b" if done else "wb", buffering=0)
                self.metrics = until_done.enter_context(metrics)
            if done == 0:
                processes.agreed(self._tidy)
                self._save(0)
                self._note(0)
            elif self.rank == 0:
                # what was logged after the checkpoint will be logged again
                self.metrics.truncate(self.logged)
                self.metrics.seek(self.logged)
            with _in_words(self.recipe), self._divergence_told():
                trainer.loop(
                    self.model,
                    self.batches,
                    self.update,
                    self.optimizer,
                    self.recipe.schedule,
                    self.recipe.optimizer.lr,
                    self.recipe.training.iterations,
                    self._after_step,
                    done,
                )
        return True

    def _tidy(self) -> None:
        for leftover in (*steps(self.folder), self.folder / FOLDER / BEST):
            leftover.unlink(missing_ok=True)

    def _go_back(self) -> int:
        checkpoint, best = processes.agreed(self._newest)
        checkpoint.restore(self.model, self.optimizer)
        if self.average is not None:
            for name, tensor in checkpoint.average.items():
                self.average.weights[name].copy_(sharding.share(self.average.weights[name], tensor))
        self.update.scaler.load_state_dict(checkpoint.scaler)
        self.batches.position, self.best = checkpoint.position, best
        self.logged, self.origin = checkpoint.metrics, checkpoint.origin
        return checkpoint.iteration

    def _newest(self) -> tuple[Checkpoint, float]:
        """The checkpoint to go on from, and the best that validation had found by then."""
        checkpoint = Checkpoint.read(newest(self.folder))
        metrics = self.folder / "metrics.jsonl"
        if not metrics.is_file() or metrics.stat().st_size < checkpoint.metrics:
            raise FileError(
                f"{metrics} is missing or shorter than it was; put it back, or train again into another folder"
            )
        lines = [line for line in read_metrics(metrics) if line["iteration"] <= checkpoint.iteration]
        return checkpoint, max((_merit(line) for line in lines), default=-math.inf)

    def _after_step(self, done: int, loss: Tensor) -> bool:
        plan = self.recipe.training
        self.done = done
        self.losses.append(loss)
        if self.average is not None:
            self.average.update(self.model, done)
        last = done == plan.iterations
        if done % plan.log_every == 0 or last:
            self._log_loss(done)
        if done % plan.validate_every == 0 or last:
            self._validate(done)
            self._note(done)
        stopped = self._stopped(done)
        kept = plan.keep_every and done % plan.keep_every == 0
        if done % plan.checkpoint_every == 0 or kept or last or stopped:
            self._save(done)
        self.watch(Moment(done, plan.iterations, self.loss, self.accuracy, self.robust))
        self._draw_apart(done)
        return not stopped

    def _draw_apart(self, done: int) -> None:
        """Else dropout would leave out the same values of every process's images; checkpoints keep the first one's."""
        if self.rank:
            torch.manual_seed(subseed(self.recipe.seed, 2, self.rank, done))

    def _stopped(self, done: int) -> bool:
        """Whether to end early: where any process is told to, all do; they ask one another at every line of the log."""
        if self.world == 1:
            return self.stop()
        if done % self.recipe.training.log_every:
            return False
        told = torch.tensor(float(self.stop()), device=next(self.model.parameters()).device)
        return processes.total(told).item() > 0

    def _log_loss(self, done: int) -> None:
        self.loss = self._finite_loss(done)
        self.losses.clear()
        now = time.monotonic()
        lr = self.optimizer.param_groups[0]["lr"]
        self._log(iteration=done, loss=self.loss, lr=lr, seconds=round(now - self.since, 3))
        self.since = now

    def _finite_loss(self, done: int) -> float:
        """The mean loss since the last line. A checkpoint of weights that are no numbers would evict a good one."""
        if not self.losses:
            return self.loss
        loss = processes.total(torch.stack(self.losses).float().mean()).item() / self.world
        if not math.isfinite(loss):
            weights = ((name, sharding.whole(weight)) for name, weight in self.model.named_parameters())
            first = next((name for name, weight in weights if not weight.isfinite().all()), "")
            raise self._diverged(f"the loss is {loss} at iteration {done}" + (f" and so is {first}" if first else ""))
        return loss

    @contextmanager
    def _divergence_told(self) -> Iterator[None]:
        """An attack meets what has diverged before any loss is looked at, and blames the model."""
        try:
            yield
        except NoNumbersError as problem:
            raise self._diverged(f"{problem} after iteration {self.done}") from problem

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what}; lower optimizer.lr (now {self.recipe.optimizer.lr:g}) and train again into another folder; "
            f"checkpoints before this are kept in {self.folder}"
        )

    def _validate(self, done: int) -> None:
        if not len(self.dataset.validation):
            return
        model = self.model
        if self.judged is not None and self.average is not None:
            model = self.judged
            model.load_state_dict({name: sharding.whole(tensor) for name, tensor in self.average.weights.items()})
        if layers.branches(model):
            model = layers.route(model, self.branch)
        plan = self.recipe.validation
        images = self.dataset.validation.first(plan.samples or len(self.dataset.validation))
        loss, self.accuracy = validated(model, images)
        line = {"validation_loss": loss, "validation_accuracy": self.accuracy}
        if plan.attack is not None:
            # the attack has the memory that training has: as many images at once as an update's pass
            size = self.recipe.training.batch_size // (self.world * self.recipe.training.accumulation)
            self.robust = withstood(model, images, plan.attack, self.recipe.seed, min(size, 500))
            line["validation_robust_accuracy"] = self.robust
        self._log(iteration=done, **line)
        if (merit := _merit(line)) > self.best:
            self.best = merit
            taken = self._taken(done).without_course()
            processes.agreed(lambda: taken.write(self.folder, BEST))

    def _note(self, done: int) -> None:
        if sharding.is_spread(self.model):  # nobody here has the weights that there would be something to say about
            return
        with in_force(dict.fromkeys(routes_in_force(self.model), self.branch)):
            noted = self.note(self.model)
        if noted:
            self._log(iteration=done, **noted)

    def _log(self, **line: Any) -> None:
        if self.rank:
            return
        try:
            self.metrics.write(json.dumps(line).encode() + b"\n")
        except OSError as problem:
            raise FileError(
                f"{self.metrics.name} cannot be written: {problem.strerror}; the last checkpoint is intact, "
                "free some space and go on with --resume"
            ) from problem

    def _save(self, done: int) -> None:
        self._finite_loss(done)
        taken = self._taken(done)
        processes.agreed(lambda: self._written(taken))

    def _written(self, taken: Checkpoint) -> None:
        # what the checkpoint says is written must be on the disk before it
        os.fsync(self.metrics.fileno())
        taken.write(self.folder, keep_every=self.recipe.training.keep_every)

    def _taken(self, done: int) -> Checkpoint:
        """This moment."""
        return Checkpoint.take(
            self.recipe.model[0],
            self.model,
            self.optimizer,
            done,
            self.batches.position,
            0 if self.rank else self.metrics.tell(),
            self.origin,
            self.average.weights if self.average is not None else None,
            self.update.scaler.state_dict(),
        )


def _merit(line: Mapping[str, Any]) -> float:
    """What a line of the log says for the weights of that moment: what withstood the attack, else what was right."""
    for name in ("validation_robust_accuracy", "validation_accuracy"):
        if name in line:
            return float(line[name])
    return -math.inf


@contextmanager
def _in_words(recipe: Recipe) -> Iterator[None]:
    """What torch reports from the machine (memory that ran out, a process that died) is said with what to do."""
    try:
        yield
    except RuntimeError as problem:
        if str(problem).startswith("DataLoader worker"):
            raise DataError(
                f"a process that reads images ended: {str(problem).splitlines()[0]}; go on with --resume, with fewer "
                "data.workers if memory ran out"
            ) from problem
        if isinstance(problem, distributed.DistError) or "gloo" in str(problem):
            raise ProcessError(
                "another process of this job ended, and says why; mend that and go on with --resume, with as many "
                "processes as you like"
            ) from problem
        if not isinstance(problem, torch.OutOfMemoryError) and "can't allocate memory" not in str(problem):
            raise
        plan = recipe.training
        settings = inspect.signature(models.MODELS[recipe.model[0]]).parameters
        checkpointing = " or model.checkpointing = true" if "checkpointing" in settings else ""
        raise OutOfMemoryError(
            f"out of memory with {plan.batch_size // plan.accumulation} images at a time; take "
            f"training.accumulation = {2 * plan.accumulation} (the same batch in smaller parts), training.precision = "
            f"'bfloat16'{checkpointing}, or a smaller training.batch_size; what was saved before is whole"
        ) from problem


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
        model.learn_statistics(dataset.train.sample())
    return _laid_out(recipe.norm.installed(model), recipe)


def _laid_out(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model in the memory layout it is trained in."""
    if recipe.training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def validated(model: nn.Module, split: Split, size: int = 500) -> tuple[float, float]:
    """Mean loss and accuracy in evaluation mode, over all processes; the model is left in training mode."""
    model.eval()
    found = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    with torch.no_grad():
        for images, labels, _ in _shared_out(split, size, model):
            logits = model(images)
            found[0] += cross_entropy(logits, labels, reduction="sum")
            found[1] += (logits.argmax(1) == labels).sum()
    model.train()
    loss, right = (_summed(found, model) / len(split)).tolist()
    return loss, right


def withstood(model: nn.Module, split: Split, attack: Attack, seed: int, size: int = 500) -> float:
    """The share of images that the model gets right, and still does after the attack, over all processes."""
    found = torch.zeros(1, dtype=torch.float64, device=next(model.parameters()).device)
    model.eval()
    for images, labels, index in _shared_out(split, size, model):
        with torch.no_grad():
            right = (model(images).argmax(1) == labels).nonzero()[:, 0]
        truth = labels[right]
        # the search is for verdicts: what has fallen leaves the batch
        outcome = attack.run(model, images[right], truth, seed=seed, index=index[right], until_success=True)
        with torch.no_grad():
            found += (model(outcome.images).argmax(1) == truth).sum()
    model.train()
    return (_summed(found, model) / len(split)).item()


def _shared_out(split: Split, size: int, model: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's batches of a split: images, labels, places.

    Where the model is spread over the processes all of them go through every batch.
    """
    rank, world = processes.place()
    together = sharding.is_spread(model)
    for number, start in enumerate(range(0, len(split), size)):
        if together or number % world == rank:
            images, labels = split.at(slice(start, start + size))
            yield images, labels, torch.arange(start, start + len(labels), device=labels.device)


def _summed(found: Tensor, model: nn.Module) -> Tensor:
    """What all processes found in the batches that were shared out."""
    return found if sharding.is_spread(model) else processes.total(found)


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
        raise UsageError(
            f"{folder} was trained with another recipe: {found}; choose another folder "
            "(`bessemer train` with --out, `bessemer reproduce` with --runs)"
        )


def _located(recipe: Recipe) -> dict[str, Any]:
    """A recipe's tables, the run it starts from written in full: there are several ways to name a folder.

    Left out is what depends on the machines, and changes nothing in what an update computes: how many workers read the
    images, and in how many parts a process works through its share. (Batch norms see one part at a time, as they see
    one process's share; that too may change.) And what the recipe says about itself.
    """
    images = {key: value for key, value in recipe.tables["data"].items() if key != "workers"}
    training = {key: value for key, value in recipe.tables["training"].items() if key != "accumulation"}
    return {
        **recipe.tables,
        "data": images,
        "training": training,
        "init": str(Path(recipe.init).resolve()) if recipe.init else "",
        "about": "",
    }


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
