"""The moving average of a network's weights, which is often more accurate and more robust than the last ones.

    average <- decay_t · average + (1 - decay_t) · weights,      decay_t = min(decay, (1 + t) / (10 + t))

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; with adversarial training, Gowal et
al., "Uncovering the limits of adversarial training", 2020, section 4.4. The smaller decay of early updates t lets go of
the random start.
"""

from __future__ import annotations

import torch
from torch import nn

from bessemer.training.checkpoint import weights_of


class Average:
    """The average so far: `weights`, by name, running statistics among them."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in weights_of(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, done: int) -> None:
        """Take in the weights after so many updates; what is no float (counts of batches) is copied."""
        share = 1 - min(self.decay, (1 + done) / (10 + done))
        for name, tensor in weights_of(model).items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor.detach(), share)
            else:
                self.weights[name].copy_(tensor)
