"""The laboratory's network: pairs of ReLU neurons that share a weight and a threshold, summed.

    f(x) = Σ_i ReLU(⟨w_i, x⟩ + rho_i − b_i) − ReLU(−⟨w_i, x⟩ + rho_i − b_i)

Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190. Only the w_i are trained. The thresholds
b_i ≥ 0 follow a schedule, the noise rho_i ~ N(0, (smoothing · b_i)²) smooths the gates while training and is 0 in
evaluation. f is odd, so its two logits are (−f/2, f/2), and their cross-entropy is the logistic loss of f.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SymmetricReLU(nn.Module):
    """`pairs` symmetric pairs on `dim` inputs: logits (−f/2, f/2).

    scale: of the Gaussian initial weights. smoothing: the standard deviation of rho in units of the threshold.
    """

    biases: Tensor

    def __init__(self, dim: int, pairs: int, scale: float, smoothing: float = 0.3) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(pairs, dim))
        self.register_buffer("biases", torch.zeros(pairs))
        self.smoothing = smoothing

    def twin(self) -> SymmetricReLU:
        """A copy, to be kept or changed."""
        return deepcopy(self)

    def forward(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """The two logits."""
        half = self.score(inputs)[:, None] / 2
        return torch.cat([-half, half], 1)

    def score(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """f."""
        before = inputs @ self.weight.T
        threshold = self.biases
        if self.training and self.smoothing:
            threshold = threshold - self.smoothing * self.biases * torch.randn_like(before)
        return (torch.relu(before - threshold) - torch.relu(-before - threshold)).sum(1)
