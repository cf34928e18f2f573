"""What a training method is: an answer to one question, *what is the loss of this batch?*"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from bessemer.data import Batch

Losses = Generator[Tensor, None, None]  # a loss for each update


@dataclass(frozen=True)
class Method(ABC):
    """A way to train. Methods hold one another, so that a combination is an expression."""

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """The model with whatever this method installs first; what must come off after training goes on the stack.

        Raises `UsageError` where the model is not one that this method can train.
        """
        return model

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with the adversarial images that `loss` would make, so that several losses can share them."""
        return batch

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of one batch, ready for its backward pass; adversarial images that it brings are not made again."""

    @property
    def updates(self) -> int:
        """How many updates of the weights each batch serves."""
        return 1

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """A loss for each update; before it asks for the next one, the loop makes the backward pass and the update."""
        yield self.loss(model, batch)

    @property
    def branch(self) -> str:
        """The branch of a mixture norm (`bessemer.layers.mixture_norm`) that trained networks are judged through.

        Empty for methods that know of no branches.
        """
        return ""


class Around(Method):
    """A method that changes how the one inside trains: what it does not say itself, that one says."""

    inside: Method

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """As the method inside."""
        return self.inside.prepare(model, until_done)

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """As the method inside."""
        return self.inside.attacked(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the method inside."""
        return self.inside.loss(model, batch)

    @property
    def updates(self) -> int:
        """As many as the method inside makes."""
        return self.inside.updates

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """The losses of the method inside."""
        return self.inside.losses(model, batch)

    @property
    def branch(self) -> str:
        """The branch of the method inside."""
        return self.inside.branch
