"""Regular training: the mean cross-entropy of the batch, with what keeps logits small where it is asked for.

Label smoothing after Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, section 7; the
temperature after Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015; the penalty on squared
logits (logit squeezing) after Kannan, Kurakin and Goodfellow, "Adversarial logit pairing", 2018, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.layers import report_misclassified
from bessemer.training.methods.method import Method


@dataclass(frozen=True)
class Plain(Method):
    """Regular training.

    label_smoothing: the share of the target that is spread evenly over all classes; it makes the best logit gap finite.
    temperature: what logits are divided by, in the training loss alone; below 1 a smaller gap is enough. logit_penalty:
    its factor times the mean squared length of the logits is added to the loss.
    """

    label_smoothing: float = 0.0
    temperature: float = 1.0
    logit_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing should lie between 0 and 1, found {self.label_smoothing}")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature should be a number above 0, found {self.temperature}")
        if not 0 <= self.logit_penalty < math.inf:
            raise UsageError(f"logit_penalty should be a number from 0 upwards, found {self.logit_penalty}")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy, and the penalty."""
        logits = report_misclassified(model, model(batch.images), batch.labels)
        scaled = logits if self.temperature == 1 else logits / self.temperature
        loss = cross_entropy(scaled, batch.labels, label_smoothing=self.label_smoothing)
        if self.logit_penalty:
            loss = loss + self.logit_penalty * logits.square().sum(1).mean()
        return loss
