"""How the neurons of a network move while it trains: a few numbers a layer, to be logged as training goes on.

After Allen-Zhu and Li, "Feature purification", 2021: adversarial training should leave theta(w, w′) large while
theta(w⁰, w′) stays small. `purify` asks that of two networks that are done, neuron by neuron; here medians tell when in
the course of training it comes about. What is measured, under which names, is in `bessemer.records.movement`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from bessemer.purification import angles
from bessemer.purification.neurons import weights
from bessemer.records.movement import INITIAL, OUTWEIGHS, START, named
from bessemer.training import Recipe, chain, checkpoint

Note = Callable[[nn.Module], dict[str, float]]

DIGITS = 6  # of what is noted, after the point


def movement(start: Mapping[str, Tensor] | None, initial: Mapping[str, Tensor] | None) -> Note:
    """What to ask of a model in training: how far each of its layers is from where it began.

    start: the weights w of the clean network that training goes on from; initial: the random ones before all training,
    w⁰; each by its name in the model's `state_dict`, or None where it is not known. Neurons without a direction are
    counted nowhere, and a layer without any others is left out. The model may be as a training method prepared it
    (balanced, or with a low-rank update: then w′ is the weight with that update), and is left as it is.
    """

    @torch.no_grad()
    def note(model: nn.Module) -> dict[str, float]:
        now = weights(model)
        since, before = weights(start or {}, now), weights(initial or {}, now)
        found: dict[str, Tensor] = {}
        for layer, weight in now.items():
            rows = weight.rows
            live = angles.directed(rows)
            if layer in since:
                begun = since[layer].rows.to(rows.device)
                theta = _theta(begun, rows, live)
                # beta has the sign of <w, w′>, and |beta w′| > |v| below 45 degrees
                outweighs = ((begun * rows).sum(1) > 0) & (theta > math.sqrt(0.5))
                found[named(START, layer)] = theta.nanquantile(0.5)
                found[named(OUTWEIGHS, layer)] = outweighs.sum() / theta.isfinite().sum()
            if layer in before:
                theta = _theta(before[layer].rows.to(rows.device), rows, live)
                found[named(INITIAL, layer)] = theta.nanquantile(0.5)
        # in one go: each number fetched from a GPU would wait for it
        values = torch.stack(list(found.values())).tolist() if found else []
        return {name: round(value, DIGITS) for name, value in zip(found, values, strict=True) if math.isfinite(value)}

    return note


def movement_of(folder: str | Path, recipe: Recipe) -> Note:
    """`movement` for the run that `training.train` makes in a folder: it finds the weights that the run keeps there.

    A recipe with `init` tells how far the neurons are from the clean network and from the random start, one without
    from the random start alone. That is noted of every run, cleanly trained ones too: how far adversarial training
    leads from the random start says something only beside how far any training does. Where the run kept no such
    weights nothing is noted. The files are read when first asked, which is after training has written them.
    """

    @cache
    def asked() -> Note:
        there = Path(folder) / checkpoint.FOLDER
        began = (there / checkpoint.INITIAL).is_file()
        random = (there / chain.RANDOM).is_file() if recipe.init else began
        return movement(
            chain.starting_weights(folder) if recipe.init and began else None,
            chain.initial_weights(folder) if random else None,
        )

    def note(model: nn.Module) -> dict[str, float]:
        return asked()(model)

    return note


def _theta(begun: angles.Rows, rows: angles.Rows, live: Bool[Tensor, " neurons"]) -> angles.PerNeuron:
    """Theta of each neuron, NaN where it has no direction: `live` says which rows have one."""
    return angles.theta(begun, rows).masked_fill(~(live & angles.directed(begun)), math.nan)
