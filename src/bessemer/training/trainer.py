"""The loop. It knows nothing of methods, files or progress bars."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor, nn

from bessemer.data import Batches
from bessemer.training.methods import Method
from bessemer.training.optimizers import SGD
from bessemer.training.schedules import Schedule

AfterStep = Callable[[int, Tensor], bool]  # (iterations done, loss) -> whether to go on


def fit(
    model: nn.Module,
    batches: Batches,
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
    """
    with ExitStack() as until_done:
        prepared = method.prepare(model, until_done)
        prepared.train()
        while done < iterations:
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(done, iterations)
            optimizer.zero_grad()
            loss = method.loss(prepared, batches.next())
            loss.backward()
            optimizer.step()
            done += 1
            if not after_step(done, loss.detach()):
                return
