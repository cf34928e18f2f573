"""The loop. It knows nothing of methods, files or progress bars."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.training.methods import Method
from bessemer.training.optimizers import SGD
from bessemer.training.schedules import Schedule
from bessemer.training.update import Update


class Stream(Protocol):
    """Batches without end."""

    def next(self) -> Batch:
        """The next one."""
        ...


AfterStep = Callable[[int, Tensor], bool]  # (iterations done, loss) -> whether to go on


def fit(
    model: nn.Module,
    batches: Stream,
    method: Method,
    optimizer: SGD,
    schedule: Schedule,
    lr: float,
    iterations: int,
    after_step: AfterStep,
    done: int = 0,
) -> None:
    """Train from iteration `done` to `iterations`, or until `after_step` says no.

    lr: the base rate, which the schedule multiplies. The model is left in training mode, with whatever the method had
    installed taken off again.
    Raises `UsageError` where the method installs parameters of its own: the optimiser, made before, knows none of them.
    """
    before = {id(parameter) for parameter in model.parameters()}
    with ExitStack() as until_done:
        prepared = method.prepare(model, until_done)
        if any(parameter.requires_grad and id(parameter) not in before for parameter in prepared.parameters()):
            raise UsageError(
                f"{type(method).__name__} trains parameters of its own, which the optimizer does not know; call "
                "prepare first, make the optimizer from what it returns, and call bessemer.training.trainer.loop"
            )
        update = Update(prepared, method, optimizer)
        loop(prepared, batches, update, optimizer, schedule, lr, iterations, after_step, done)


def loop(
    prepared: nn.Module,
    batches: Stream,
    update: Update,
    optimizer: SGD,
    schedule: Schedule,
    lr: float,
    iterations: int,
    after_step: AfterStep,
    done: int = 0,
) -> None:
    """The same for a model that the method has prepared already."""
    prepared.train()
    while done < iterations:
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(done, iterations)
        loss = update(batches.next())
        done += 1
        if not after_step(done, loss):
            return
