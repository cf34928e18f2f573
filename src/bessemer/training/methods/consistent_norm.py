"""Consistent batch norm: from some iteration on, training normalises by running statistics.

Xie and Yuille, "Intriguing properties of adversarial training at scale", 2020, find that a network gains robustness
where batch norm does the same in training as in testing. How that is done, and when it begins, is ours:
`bessemer.layers.consistent_norm`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.layers import consistent
from bessemer.training.methods.method import Around, Losses, Method
from bessemer.training.methods.plain import Plain
from bessemer.training.methods.recomputing import recomputes


@dataclass(frozen=True)
class ConsistentNorm(Around):
    """Any training method, its batch norms consistent from an iteration on.

    start: that iteration; the running statistics must have settled by then, since they stay as they are. inside: the
    method that trains.
    """

    start: int
    inside: Method = Plain()

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UsageError(f"start is a number of iterations from 0 upwards, found {self.start}")

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """As the method inside. Raises `UsageError` where no batch norm can be made consistent."""
        with consistent(model):  # refused now, not when training has come so far
            pass
        return super().prepare(model, until_done)

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """As the method inside, on the network that is trained."""
        with self._at(model, batch):
            return super().attacked(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the method inside.

        Raises `UsageError` where the model computes activations a second time: the backward pass comes too late.
        """
        if batch.iteration >= self.start and recomputes(model):
            raise UsageError(
                "the model computes activations a second time in the backward pass (checkpointing); put "
                "consistent-norm around the other methods, not inside them"
            )
        with self._at(model, batch):
            return super().loss(model, batch)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """The losses of the method inside; the batch norms stay consistent through the backward pass of each."""
        with self._at(model, batch):
            yield from super().losses(model, batch)

    def _at(self, model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
        return consistent(model) if batch.iteration >= self.start else nullcontext()
