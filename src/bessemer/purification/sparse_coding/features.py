"""What each neuron holds: a few atoms of the dictionary, and a dense mixture of all the others.

    w = Σ_{j kept} c_j M_j + (the mixture),    c = Mᵀ w

After Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190. An atom is kept where its |c_j| is at least
`KEPT` of the neuron's largest; that line is ours. All measures but `mixture_size` ignore a neuron's length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bessemer.purification.angles import scaling, theta
from bessemer.purification.perturbations import participation
from bessemer.purification.sparse_coding.data import SparseCoding

KEPT = 0.3
PerNeuron = Float[Tensor, " pairs"]
Weights = Float[Tensor, "pairs d"]


@dataclass(frozen=True)
class Features:
    """One network's neurons.

    purity: max_j ⟨w, M_j⟩² / ‖w‖². top3: the share of ‖w‖² in the three largest atoms. kept: how many atoms. mixture:
    the share of ‖w‖² in all others, mixture_size: its length. spread: the share of atoms that take part in it. dense:
    |cos(w, M w*)|.
    """

    purity: PerNeuron
    top3: PerNeuron
    kept: Int[Tensor, " pairs"]
    mixture: PerNeuron
    mixture_size: PerNeuron
    spread: PerNeuron
    dense: PerNeuron


def features(weights: Weights, source: SparseCoding) -> Features:
    """What the neurons with these weights hold of a source's atoms."""
    codes = weights @ source.atoms.to(weights).T
    squares = codes.square()
    total = squares.sum(1)
    largest = squares.topk(3, dim=1).values
    kept = squares >= KEPT**2 * largest[:, :1]
    mixture = codes.masked_fill(kept, 0)
    left = mixture.square().sum(1)
    return Features(
        purity=largest[:, 0] / total,
        top3=largest.sum(1) / total,
        kept=kept.sum(1),
        mixture=left / total,
        mixture_size=left.sqrt(),
        spread=participation(mixture),
        dense=theta(codes, source.signal.to(codes).expand_as(codes)),
    )


@dataclass(frozen=True)
class Decomposition:
    """The clean weight w of each neuron against its robust one w′: w = beta w′ + v, with the beta that makes v least.

    before, after: theta of the initial weight with w and with w′. kept: theta(w, w′). beta: its sign is the feature's.
    ratio: ‖beta w′‖ / ‖v‖. dense: cos(v, M w*) along the sign that the neuron has. spread: the share of atoms that take
    part in v. largest: the largest share of ‖v‖² that one atom has. signs: the share of atoms whose sign in v agrees
    with w*, or with −w* where more do.
    """

    before: PerNeuron
    after: PerNeuron
    kept: PerNeuron
    beta: PerNeuron
    ratio: PerNeuron
    dense: PerNeuron
    spread: PerNeuron
    largest: PerNeuron
    signs: PerNeuron


def decomposition(initial: Weights, clean: Weights, robust: Weights, source: SparseCoding) -> Decomposition:
    """What adversarial training kept of each neuron and what it removed."""
    beta = scaling(clean, robust)
    kept = beta[:, None] * robust
    removed = (clean - kept) @ source.atoms.to(clean).T
    squares = removed.square()
    signal = source.signal.to(removed)
    agreeing = (removed.sign() == signal.sign()).to(removed.dtype).mean(1)
    return Decomposition(
        before=theta(initial, clean),
        after=theta(initial, robust),
        kept=theta(clean, robust),
        beta=beta,
        ratio=kept.norm(dim=1) / removed.norm(dim=1),
        dense=theta(removed, signal.expand_as(removed)),
        spread=participation(removed),
        largest=squares.amax(1) / squares.sum(1),
        signs=torch.maximum(agreeing, 1 - agreeing),
    )


def live(weights: Weights, biases: PerNeuron, inputs: Float[Tensor, "n d"]) -> Bool[Tensor, " pairs"]:
    """Which neurons fire on any of some inputs."""
    return ((inputs @ weights.T).abs() > biases).any(0)
