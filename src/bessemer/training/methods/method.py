"""What a training method is: an answer to one question, *what is the loss of this batch?*"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.data import Batch
from bessemer.layers import report_misclassified


@dataclass(frozen=True)
class Method(ABC):
    """A way to train. Methods hold one another, so that a combination is an expression."""

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """The model with whatever this method installs first; what must come off after training goes on the stack."""
        return model

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of one batch, ready for its backward pass."""


def classification_loss(model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> Tensor:
    """The mean cross-entropy of a forward pass, which also tells balanced layers what it got wrong."""
    return cross_entropy(report_misclassified(model, model(images), labels), labels)
