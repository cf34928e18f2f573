"""How much of a change of weights an update of low rank holds.

The best approximation of rank r of a matrix keeps its r largest singular values (Eckart and Young, 1936), so the share
of the squared norm it explains is theirs in the sum of all squared singular values. Weights are read one row a neuron,
(out, in·kh·kw); other ways to flatten a convolution have other ranks.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_POINTS = 4096  # of the integral; its error is then below 1e-6


def ranks(shape: tuple[int, int]) -> list[int]:
    """1, 2, 4, … up to full rank."""
    return [2**power for power in range(min(shape).bit_length())]


def explained(change: Float[Tensor, "neurons size"], at: list[int]) -> list[float]:
    """The share of the squared norm of a change that its best approximation of each rank holds; NaN of no change."""
    if not change.any():
        return [math.nan] * len(at)
    change = change / change.abs().max()  # squares of small numbers shall not vanish
    small = change if change.shape[0] <= change.shape[1] else change.T
    squares = torch.linalg.eigvalsh(small @ small.T).flip(0).clamp(min=0)
    shares = squares.cumsum(0) / squares.sum()
    return [float(shares[rank - 1]) for rank in at]


def explained_by_chance(shape: tuple[int, int], at: list[int]) -> list[float]:
    """The same for a large matrix of independent normal numbers: the law of Marchenko and Pastur (1967).

    Its squared singular values, over the longer side, lie in [(1 - √y)², (1 + √y)²] for y = shorter/longer side, with
    density √((λ₊ - λ)(λ - λ₋)) / (2πyλ).
    """
    least, most = min(shape), max(shape)
    y = least / most
    # λ = 1 + y + 2√y cos φ makes the density smooth; from the largest down
    angle = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) * torch.pi / _POINTS
    value = 1 + y + 2 * y**0.5 * angle.cos()
    mass = angle.sin() ** 2 / value
    counted = (mass / mass.sum()).cumsum(0)
    held = (mass * value / (mass * value).sum()).cumsum(0)
    places = torch.searchsorted(counted, torch.tensor([rank / least for rank in at], dtype=torch.float64))
    return [
        float(held[min(place, _POINTS - 1)]) if rank < least else 1.0
        for place, rank in zip(places.tolist(), at, strict=True)
    ]
