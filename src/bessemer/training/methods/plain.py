"""Regular training: the mean cross-entropy of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.training.methods.method import Method, classification_loss


@dataclass(frozen=True)
class Plain(Method):
    """Regular training."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy."""
        return classification_loss(model, batch.images, batch.labels)
