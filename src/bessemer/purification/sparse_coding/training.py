"""Clean training from random weights, then adversarial training from the weights it found.

After Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190: gradient descent on the
logistic loss, with the regulariser lambda · Σ (‖w_i‖²/2 + ‖w_i‖³/3) while training clean; thresholds that first grow
with the weights, so that few neurons fire and those that began nearest to a feature win, and then stay; adversarial
training without regulariser and with the thresholds frozen, on the fast gradient method's perturbations.

Where we deviate, since d is finite here and the paper's schedules are asymptotic:

- a threshold is c(t) · ‖w_i‖ · √(E‖x‖²/d), its own neuron's weights' norm, unless `common` says otherwise; c falls at
  the end, without which the clean network is not fragile;
- fresh samples every step and stochastic gradient descent, unless `sample` says how many are drawn once;
- adversarial training starts at a low rate: every neuron fires along the dense direction, and the first steps blow up
  what clean training found.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.errors import DivergedError
from bessemer.purification.sparse_coding.data import Stream
from bessemer.purification.sparse_coding.network import SymmetricReLU
from bessemer.records import read_metrics
from bessemer.training import trainer
from bessemer.training.checkpoint import FOLDER, INITIAL, Checkpoint, newest
from bessemer.training.methods import Method, Plain
from bessemer.training.optimizers import SGD
from bessemer.training.schedules import Schedule

Observe = Callable[[SymmetricReLU], dict[str, Any]]
Watch = Callable[[int, int], None]  # (updates made, of how many)

MOMENTS = 16  # at which a phase is looked at
SAVED_EVERY = 100  # updates
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Thresholds:
    """b = c(t) · ‖w‖ · √(E‖x‖²/d): c(t) standard deviations of what a neuron without a feature sees.

    c goes from `start` to `hold` until `until` of the run, then straight to `end`. common: one threshold for all
    neurons, with this quantile of the norms in the place of each neuron's own.
    """

    start: float = 3.5
    hold: float = 3.5
    end: float = 0.5
    until: float = 0.62
    common: float | None = None

    def __call__(self, iteration: int, iterations: int) -> float:
        """c before update `iteration`."""
        done = iteration / iterations
        if done < self.until:
            return self.start + (self.hold - self.start) * done / self.until
        return self.hold + (self.end - self.hold) * (done - self.until) / (1 - self.until)

    def norms(self, weights: Float[Tensor, "pairs d"]) -> Float[Tensor, " pairs"]:
        """‖w‖ of each neuron, or what stands for it."""
        norms = weights.norm(dim=1)
        return norms if self.common is None else norms.quantile(self.common).expand_as(norms)


@dataclass(frozen=True)
class Settled:
    """A rate that is constant, then falls to `final` of it along half a cosine over the last `share` of the run."""

    share: float = 0.3
    final: float = 0.0

    def __call__(self, iteration: int, iterations: int) -> float:
        """The multiplier."""
        past = (iteration / iterations - 1 + self.share) / self.share
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * max(0.0, past))) / 2


@dataclass(frozen=True)
class Ramped:
    """`Settled`, after an exponential climb from `first` of the rate over the first `over` of the run."""

    first: float = 0.05
    over: float = 0.25
    settled: Settled = Settled(0.4, 0.02)

    def __call__(self, iteration: int, iterations: int) -> float:
        """The multiplier."""
        climbed = min(1.0, iteration / iterations / self.over)
        return self.first ** (1 - climbed) * self.settled(iteration, iterations)


@dataclass(frozen=True)
class Regularised(Method):
    """Regular training with lambda · Σ (‖w‖²/2 + ‖w‖³/3) over the neurons."""

    decay: float

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean logistic loss plus the regulariser."""
        norms = model.get_parameter("weight").norm(dim=1)
        return Plain().loss(model, batch) + self.decay * (norms.square() / 2 + norms**3 / 3).sum()


@dataclass(frozen=True)
class Phase:
    """One training of the two. thresholds: c(t), or None where the network's stay as they are."""

    method: Method
    lr: float
    iterations: int
    schedule: Schedule
    thresholds: Thresholds | None = None

    def train(
        self, network: SymmetricReLU, stream: Stream, folder: Path, observe: Observe, watch: Watch, seed: int = 0
    ) -> list[dict[str, Any]]:
        """Train in place, or go on from what `folder` holds; returns what was observed, a line a moment.

        observe: what is to be noted about the network, asked before the first update, after the last, and at equal
        distances between. watch: called after every update. Raises `DivergedError` where the loss is no number.
        """
        course = _Course(self, network, stream, folder, observe)
        torch.manual_seed(seed)
        done = course.resume()

        def after_step(done: int, loss: Tensor) -> bool:
            course.after_step(done, loss)
            watch(done, self.iterations)
            return True

        trainer.fit(
            network,
            stream,
            self.method,
            course.optimizer,
            self.schedule,
            self.lr,
            self.iterations,
            after_step,
            done,
        )
        network.eval()
        return read_metrics(folder / METRICS)


class _Course:
    """A phase on its way: thresholds set, moments noted, checkpoints written."""

    def __init__(self, phase: Phase, network: SymmetricReLU, stream: Stream, folder: Path, observe: Observe) -> None:
        self.phase, self.network, self.stream, self.folder, self.observe = phase, network, stream, folder, observe
        self.optimizer = SGD(network.parameters(), phase.lr, momentum=0.0)
        self.moments = {round(part * phase.iterations / (MOMENTS - 1)) for part in range(MOMENTS)}
        self.since = time.monotonic()
        self.scale = math.sqrt(stream.source.mean_square / stream.source.dim)

    def resume(self) -> int:
        """Put everything to the newest checkpoint, or begin; returns the updates made."""
        if (self.folder / FOLDER / INITIAL).is_file():
            checkpoint = Checkpoint.read(newest(self.folder))
            checkpoint.restore(self.network, self.optimizer)
            self.stream.position = checkpoint.position
            with (self.folder / METRICS).open("r+b") as metrics:
                metrics.truncate(checkpoint.metrics)
            return checkpoint.iteration
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / METRICS).write_bytes(b"")
        self.set_thresholds(0)
        self.note(0)
        self.save(0)
        return 0

    def after_step(self, done: int, loss: Tensor) -> None:
        """What follows an update."""
        self.set_thresholds(done)
        if done in self.moments:
            if not loss.isfinite():
                raise DivergedError(f"the loss is {loss.item()} after {done} updates; lower lr (now {self.phase.lr:g})")
            self.note(done)
        if done % SAVED_EVERY == 0 or done == self.phase.iterations:
            self.save(done)

    def set_thresholds(self, done: int) -> None:
        """Let them follow the weights."""
        if self.phase.thresholds is not None:
            factor = self.phase.thresholds(done, self.phase.iterations) * self.scale
            self.network.biases.copy_(factor * self.phase.thresholds.norms(self.network.weight.detach()))

    def note(self, done: int) -> None:
        """A line of what is observed; training's random numbers stay as they are."""
        self.network.eval()
        with torch.random.fork_rng(devices=[]):
            line = {"iteration": done, **self.observe(self.network)}
        line["seconds"], self.since = time.monotonic() - self.since, time.monotonic()
        self.network.train()
        with (self.folder / METRICS).open("ab") as metrics:
            metrics.write(json.dumps(line).encode() + b"\n")

    def save(self, done: int) -> None:
        """A checkpoint."""
        logged = (self.folder / METRICS).stat().st_size
        Checkpoint.take(
            "symmetric-relu", self.network, self.optimizer, done, self.stream.position, logged, origin={}
        ).write(self.folder)
