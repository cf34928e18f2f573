"""A grid of small models trained as one: `train` for many recipes that differ in seed, beta and epsilon alone.

What is left behind are ordinary runs, a folder each, which nothing downstream can tell from those that were trained one
by one; their weights agree with these up to rounding, but the best of them are not kept. The runs advance together: a
checkpoint is written for all or for none, and a grid that was killed goes on from the newest that all have.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bessemer import data
from bessemer.arithmetic import flushed
from bessemer.data import Augmentation, Batch, Batches, Dataset
from bessemer.errors import DivergedError, FileError, UsageError
from bessemer.randomness import subseed
from bessemer.records import provenance, read_metrics, write_record, write_whole
from bessemer.training import trainer
from bessemer.training.checkpoint import FOLDER, INITIAL, Checkpoint, step_name, steps
from bessemer.training.methods import Method
from bessemer.training.norms import BatchNorm
from bessemer.training.optimizers import SGD, parameter_groups
from bessemer.training.recipe import Recipe, Training, Validation, difference
from bessemer.training.run import (
    Moment,
    device_name,
    load,
    require_device,
    require_same_run,
    sole_writer,
    untrained,
    validated,
)
from bessemer.training.stack import Stack
from bessemer.training.update import Update


@flushed()
def train_together(
    recipes: Sequence[Recipe],
    folders: Sequence[str | Path],
    *,
    resume: bool = False,
    device: str = "cpu",
    data_dir: Path | None = None,
    watch: Callable[[Moment], None] = lambda moment: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[nn.Module]:
    """Train several recipes as one batched program, each into its own run folder; returns the models as `load` would.

    resume: go on from the newest checkpoint that all have (or begin, where there is none). watch: called after every
    update with the mean loss and accuracy of the models. stop: asked after every update; where it says yes, all
    checkpoints are written and training ends early. The `seconds` that a run notes are its share of the time.

    Raises `UsageError` where the recipes differ in more than seed, beta and epsilon, or cannot be trained together;
    `DivergedError`, which names the run, where a loss is no number: the others go on, with `resume`, without it; and
    what `train` raises.
    """
    places = [Path(folder) for folder in folders]
    _require_alike(recipes, places)
    require_device(device)
    with ExitStack() as held:
        for recipe, folder in zip(recipes, places, strict=True):
            held.enter_context(sole_writer(folder))
            require_same_run(recipe, folder, resume)
        begin = _newest_of_all(places) if resume else 0
        dataset = data.load(recipes[0].data[0], data_dir, **recipes[0].data[1]).to(device)
        runs = [_begun(recipe, folder, dataset, device) for recipe, folder in zip(recipes, places, strict=True)]
        course = _Course(runs, dataset, watch, stop)
        for run in runs:
            write_whole(run.folder / "recipe.toml", run.recipe.to_toml().encode())
        if course.run(begin):
            facts = provenance(device=device_name(device), threads=torch.get_num_threads(), together=len(runs))
            for run in runs:
                seconds = sum(line.get("seconds", 0.0) for line in read_metrics(run.folder / "metrics.jsonl"))
                own = {"seed": run.recipe.seed, "seconds": round(seconds, 1)}
                write_record(run.folder / "provenance.json", facts | own)
    return [load(folder, device) for folder in places]


@dataclass(frozen=True)
class _Run:
    """One of the runs; generator: what its dropout draws from."""

    recipe: Recipe
    folder: Path
    model: nn.Module
    generator: torch.Generator


@dataclass(frozen=True)
class _OfAll(Method):
    """What the loop minimises."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The models' losses, summed."""
        assert isinstance(model, Stack)
        return model.loss(batch)


class _Stacked:
    """A batch for each model, in one; the same for all where their streams are one."""

    def __init__(self, streams: Sequence[Batches]) -> None:
        self.streams = streams

    def next(self) -> Batch:
        """The next one."""
        if len(self.streams) == 1:
            return self.streams[0].next()
        batches = [stream.next() for stream in self.streams]
        images, labels, index = (
            torch.stack([getattr(batch, part) for batch in batches]) for part in ("images", "labels", "index")
        )
        return Batch(images, labels, index, batches[0].seed)


class _Course:
    """All runs on their way: what is written when."""

    def __init__(
        self, runs: Sequence[_Run], dataset: Dataset, watch: Callable[[Moment], None], stop: Callable[[], bool]
    ) -> None:
        self.runs, self.dataset, self.watch, self.stop = runs, dataset, watch, stop
        recipe = self.recipe = runs[0].recipe
        plan, optimizer = recipe.training, recipe.optimizer
        self.stack = Stack(
            [run.model for run in runs], [run.recipe.method for run in runs], [run.generator for run in runs]
        )
        groups = parameter_groups(self.stack.network, optimizer.factors)
        self.optimizer = SGD(groups, optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov)
        seeds = list(dict.fromkeys(run.recipe.seed for run in runs))
        drawn = plan.shuffle or recipe.augmentation != Augmentation()
        self.batches = _Stacked(
            [
                Batches(dataset.train, plan.batch_size, seed, plan.shuffle, recipe.augmentation)
                for seed in ([run.recipe.seed for run in runs] if drawn and len(seeds) > 1 else seeds[:1])
            ]
        )
        self.losses: list[Tensor] = []
        self.loss = self.accuracy = math.nan
        self.since = time.monotonic()

    def run(self, done: int) -> bool:
        """From the checkpoints after so many updates (0: the start) to the end; returns whether anything was to do."""
        logged = self._go_back(done) if done else [0] * len(self.runs)
        if done >= self.recipe.training.iterations:
            return False
        with ExitStack() as until_done:
            self.metrics = [
                # unbuffered: nothing is left to be written when a full disk ends the run
                until_done.enter_context((run.folder / "metrics.jsonl").open("r+b" if done else "wb", buffering=0))
                for run in self.runs
            ]
            for file, end in zip(self.metrics, logged, strict=True):
                # what was logged after the checkpoint will be logged again
                file.truncate(end)
                file.seek(end)
            for run in self.runs:
                for later in steps(run.folder):
                    if later.name > step_name(done):
                        later.unlink()
            if done == 0:
                self._save(0)
            trainer.loop(
                self.stack,
                self.batches,
                Update(self.stack, _OfAll(), self.optimizer),
                self.optimizer,
                self.recipe.schedule,
                self.recipe.optimizer.lr,
                self.recipe.training.iterations,
                self._after_step,
                done,
            )
        return True

    def _go_back(self, done: int) -> list[int]:
        """Put everything back to the checkpoints after so many updates; returns how long the metrics were."""
        checkpoints = [Checkpoint.read(run.folder / FOLDER / step_name(done)) for run in self.runs]
        for run, checkpoint in zip(self.runs, checkpoints, strict=True):
            metrics = run.folder / "metrics.jsonl"
            if not metrics.is_file() or metrics.stat().st_size < checkpoint.metrics:
                raise FileError(
                    f"{metrics} is missing or shorter than it was; put it back, or train again into another folder"
                )
            checkpoint.restore_weights(run.model)
            state = checkpoint.random.get(run.generator.device.type)
            if state is not None:
                run.generator.set_state(state)
        first = checkpoints[0].optimizer
        velocities = {
            number: {"velocity": torch.stack([each.optimizer["state"][number]["velocity"] for each in checkpoints])}
            for number in first["state"]
        }
        self.optimizer.load_state_dict({"state": velocities, "param_groups": first["param_groups"]})
        for stream in self.batches.streams:
            stream.position = checkpoints[0].position
        return [checkpoint.metrics for checkpoint in checkpoints]

    def _after_step(self, done: int, _: Tensor) -> bool:
        plan = self.recipe.training
        self.losses.append(self.stack.losses)
        last = done == plan.iterations
        if done % plan.log_every == 0 or last:
            self._log_losses(done)
        if (done % plan.validate_every == 0 or last) and len(self.dataset.validation):
            self._validate(done)
        stopped = self.stop()
        kept = plan.keep_every and done % plan.keep_every == 0
        if done % plan.checkpoint_every == 0 or kept or last or stopped:
            self._save(done)
        self.watch(Moment(done, plan.iterations, self.loss, self.accuracy))
        return not stopped

    def _log_losses(self, done: int) -> None:
        losses = self._finite_losses(done)
        self.losses.clear()
        self.loss = sum(losses) / len(losses)
        now = time.monotonic()
        lr, seconds = self.optimizer.param_groups[0]["lr"], round((now - self.since) / len(self.runs), 6)
        self.since = now
        for place, loss in enumerate(losses):
            self._log(place, iteration=done, loss=loss, lr=lr, seconds=seconds)

    def _finite_losses(self, done: int) -> list[float]:
        """Each model's mean loss since the last line. A checkpoint of weights that are no numbers evicts a good one."""
        losses: list[float] = torch.stack(self.losses).mean(0).tolist() if self.losses else []
        for run, loss in zip(self.runs, losses, strict=False):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss of {run.folder} is {loss} at iteration {done}; go on with the others without it (resume "
                    f"is possible), and train it again with a lower optimizer.lr (now {run.recipe.optimizer.lr:g})"
                )
        return losses

    def _validate(self, done: int) -> None:
        accuracies = []
        for place, run in enumerate(self.runs):
            loss, accuracy = validated(run.model, self.dataset.validation)
            accuracies.append(accuracy)
            self._log(place, iteration=done, validation_loss=loss, validation_accuracy=accuracy)
        self.accuracy = sum(accuracies) / len(accuracies)

    def _log(self, place: int, **line: Any) -> None:
        file = self.metrics[place]
        try:
            file.write(json.dumps(line).encode() + b"\n")
        except OSError as problem:
            raise FileError(
                f"{file.name} cannot be written: {problem.strerror}; the last checkpoints are intact, "
                "free some space and resume"
            ) from problem

    def _save(self, done: int) -> None:
        self._finite_losses(done)
        state = self.optimizer.state_dict()
        position = self.batches.streams[0].position
        for place, (run, metrics) in enumerate(zip(self.runs, self.metrics, strict=True)):
            # what the checkpoint says is written must be on the disk before it
            os.fsync(metrics.fileno())
            own = {number: {"velocity": of["velocity"][place]} for number, of in state["state"].items()}
            Checkpoint(
                iteration=done,
                position=position,
                metrics=metrics.tell(),
                model=run.recipe.model[0],
                weights=run.model.state_dict(),
                optimizer={"state": own, "param_groups": state["param_groups"]},
                random={"cpu": torch.get_rng_state(), run.generator.device.type: run.generator.get_state()},
            ).write(run.folder, keep_every=self.recipe.training.keep_every)


def _begun(recipe: Recipe, folder: Path, dataset: Dataset, device: str) -> _Run:
    """The untrained model that `train` begins with, and a generator in the state it leaves torch's own in."""
    seed = subseed(recipe.seed, 1)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = untrained(recipe, dataset).to(device)
        if generator.device.type == "cpu":
            generator.set_state(torch.get_rng_state())
    return _Run(recipe, folder, model, generator)


def _require_alike(recipes: Sequence[Recipe], folders: Sequence[Path]) -> None:
    """Refuse (`UsageError`) what cannot be trained as one, before a file is touched."""
    if not recipes or len(recipes) != len(folders) or len({folder.resolve() for folder in folders}) != len(folders):
        raise UsageError(
            f"models trained together need a folder each, not {len(recipes)} recipes for {len(folders)} folders "
            f"({len({folder.resolve() for folder in folders})} of them different)"
        )
    for recipe, folder in zip(recipes, folders, strict=True):
        if recipe.init:
            raise UsageError(f"{folder}: init: models trained together begin with random weights; train it by itself")
        plain = {**asdict(Training(1, 1)), "norm": BatchNorm(), "validation": Validation(), "checkpoint": "last"}
        asked = {**asdict(recipe.training), "norm": recipe.norm, "validation": recipe.validation}
        asked["checkpoint"] = recipe.evaluation.checkpoint
        for name in ("precision", "accumulation", "compile", "average", "norm", "validation", "checkpoint"):
            if asked[name] != plain[name]:
                raise UsageError(f"{folder}: models trained together have no {name} of their own; train it by itself")
        if found := difference(_in_common(recipes[0]), _in_common(recipe)):
            raise UsageError(
                f"models trained together may differ in seed, method.beta and method.epsilon only, but from "
                f"{folders[0]} to {folder} {found}"
            )


def _in_common(recipe: Recipe) -> dict[str, Any]:
    """A recipe's tables without what may differ."""
    method = {key: value for key, value in recipe.tables["method"].items() if key not in ("beta", "epsilon")}
    return {key: value for key, value in recipe.tables.items() if key != "seed"} | {"method": method}


def _newest_of_all(folders: Sequence[Path]) -> int:
    """The newest iteration after which every run has a checkpoint; 0 where they are at their start.

    A kill leaves a run at most one checkpoint ahead of another. Raises `UsageError` where it is more: going back to the
    slowest would throw away what was trained.
    """
    kept = [{int(path.stem.removeprefix("step-")) for path in steps(folder)} for folder in folders]
    begun = [
        each | ({0} if (folder / FOLDER / INITIAL).is_file() else set())
        for each, folder in zip(kept, folders, strict=True)
    ]
    if not any(kept):
        return 0
    common = max(set.intersection(*begun), default=-1)
    ahead = [sum(iteration > common for iteration in each) for each in kept]
    if common < 0 or max(ahead) > 1:
        furthest = max(range(len(folders)), key=lambda place: max(begun[place], default=-1))
        slowest = min(range(len(folders)), key=lambda place: max(begun[place], default=-1))
        raise UsageError(
            f"{folders[furthest]} and {folders[slowest]} have no recent checkpoint in common; train each by itself to "
            "the end, or only those together that have come equally far"
        )
    return common
