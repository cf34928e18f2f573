"""The angle between two weights of a neuron, and what of the first is kept in the second.

theta(a, b) = |<a, b>| / (|a| |b|) does not change with the length of either weight, so normalisation after a layer does
not disturb it. After Allen-Zhu and Li, "Feature purification", 2021, who write w = beta w′ + v for the clean weight w
and the robust weight w′ of a neuron: v is the mixture that adversarial training removed. Here beta is the one that
makes v shortest, <w, w′> / |w′|². Then v stands upright on w′, and |v| / |beta w′| is the tangent of the angle between
w and w′: |beta w′| > |v| says the same as theta(w, w′) > 1/√2, and like theta it knows nothing of lengths.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Rows = Float[Tensor, "neurons size"]
PerNeuron = Float[Tensor, " neurons"]

SMALLEST = torch.finfo(torch.float32).tiny


def directed(rows: Rows) -> Bool[Tensor, " neurons"]:
    """Which rows have a direction: some number in them is large enough for a float32 to hold it in full."""
    return rows.abs().amax(1) >= SMALLEST


def theta(one: Rows, other: Rows) -> PerNeuron:
    """|<a, b>| / (|a| |b|), row by row; NaN where either is zero."""
    return (_unit(one) * _unit(other)).sum(1).abs().clamp(max=1)


def nearest(one: Rows, others: Rows) -> PerNeuron:
    """The largest theta of each row with any row of the other matrix; rows without a direction are nobody's."""
    return (_unit(one) @ _unit(others[directed(others)]).T).abs().amax(1).clamp(max=1)


def scaling(clean: Rows, robust: Rows) -> PerNeuron:
    """The beta that makes w - beta w′ shortest: <w, w′> / |w′|²; NaN where w′ is zero."""
    lengths = clean.norm(dim=1) / robust.norm(dim=1)
    return (_unit(clean) * _unit(robust)).sum(1) * lengths


def removed(clean: Rows, robust: Rows) -> PerNeuron:
    """|v| / |w| with v = w - beta w′: the sine of the angle between w and w′; NaN where either is zero."""
    one, other = _unit(clean), _unit(robust)
    return (one - (one * other).sum(1, keepdim=True) * other).norm(dim=1)


def _unit(rows: Rows) -> Rows:
    return rows / rows.norm(dim=1, keepdim=True)
