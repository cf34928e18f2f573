"""Two networks of one architecture, compared neuron by neuron: what adversarial training kept, and what it removed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bessemer import training
from bessemer.errors import UsageError
from bessemer.purification import angles, low_rank
from bessemer.purification.neurons import Network, Weight, left_out, tied, weights
from bessemer.records import provenance
from bessemer.records.purification import (
    CONTINUED,
    NEURON_COLUMNS,
    SAME_START,
    UNKNOWN,
    UNRELATED,
    Layer,
    Purification,
    chance,
)
from bessemer.training.chain import RANDOM, initial_weights, starting_weights
from bessemer.training.checkpoint import FOLDER, INITIAL

Given = str | Path | Network
Filters = dict[str, Weight]


@dataclass(frozen=True)
class _Opened:
    """A network with its name and, where its run knows them: the weights training started from, the random ones
    before all training, and the seed."""

    name: str
    network: Network
    start: Mapping[str, Tensor] | None = None
    initial: Mapping[str, Tensor] | None = None
    seed: int | None = None


def purify(
    clean: Given,
    robust: Given,
    initial: Given | None = None,
    independent: Given | None = None,
    *,
    robust_start: Given | None = None,
    names: tuple[str, str] | None = None,
) -> Purification:
    """What training did to the neurons between a clean network, weights w, and a robust one, weights w′.

    Each is a run folder, a module or a state dict; all must have the same architecture, whatever it is. initial: the
    weights w⁰ before any training. independent: a clean network from another seed, for the null distribution.
    robust_start: the weights that the robust training began from; where they are the clean ones the two are related. A
    run knows both of itself. names: of the clean and the robust network.

    After Allen-Zhu and Li (2021): theta(w⁰, w), theta(w⁰, w′), theta(w, w′), beta and v of `angles`, and how much of
    W′ - W an update of low rank explains. Raises `UsageError` where the architectures differ (and says where first),
    where no layer has filters, where a weight is not finite or where both networks are the same.
    """
    began = time.monotonic()
    called = names or ("", "")
    opened = {"clean": _open(clean, "clean", called[0]), "robust": _open(robust, "robust", called[1])}
    if initial is not None:
        opened["initial"] = _open(initial, "initial")
    elif (own := opened["clean"].initial) is not None:
        opened["initial"] = _Opened(f"the start of {opened['clean'].name}", own)
    if independent is not None:
        opened["independent"] = _open(independent, "independent")
    if robust_start is not None:
        opened["robust start"] = _open(robust_start, "robust start")
    elif (start := opened["robust"].start) is not None:
        opened["robust start"] = _Opened("robust start", start)
    found = _alike(opened)
    if _same(found["clean"], found["robust"]):
        raise UsageError(
            "the clean and the robust network have the same weights, so there is nothing to compare; name the network "
            "after clean training first and the one after adversarial training second"
        )
    if "independent" in found and any(_same(found["independent"], found[role]) for role in ("clean", "robust")):
        raise UsageError("the independent network is one of the two that are compared; train one from another seed")
    layers = [_measured(name, keys, found) for name, keys in _layers(found).items()]
    relation, remark = _relation(opened, found, layers)
    remarks = [remark] if remark else []
    if "initial" not in found:
        remarks.append(
            f"the weights before training are not known ({opened['clean'].name} kept none), so theta to them is not "
            "measured"
        )
    if "independent" in opened and _began_with(opened["independent"], found.get("initial")):
        remarks.append(
            f"the independent network, {opened['independent'].name}, began from the same weights as "
            f"{opened['clean'].name}, so it is not independent of it"
        )
    if dead := [f"{layer.name} {_some(layer.dead)}" for layer in layers if layer.dead]:
        remarks.append(f"neurons whose weight is zero have no direction and are left out: {'; '.join(dead)}")
    if isinstance(clean_network := opened["clean"].network, nn.Module) and (others := left_out(clean_network)):
        remarks.append(f"not measured, since they are no filters: {', '.join(others)}")
    return Purification(
        *_told_apart(opened["clean"].name, opened["robust"].name, clean, robust),
        opened["initial"].name if "initial" in opened else "",
        opened["independent"].name if "independent" in opened else "",
        relation,
        layers,
        remarks,
        provenance(
            seconds=round(time.monotonic() - began, 2),
            threads=torch.get_num_threads(),
            device=next(iter(found["clean"].values())).tensor.device.type,
        ),
    )


# --- what is compared ------------------------------------------------------------------------------------------------


def _open(given: Given, role: str, name: str = "") -> _Opened:
    """The network, and what its run knows of it."""
    if isinstance(given, str | Path):
        given = training.load(given)
    if not isinstance(given, nn.Module | Mapping):
        raise UsageError(f"{role}: a {type(given).__name__} is no network; give a run folder, a module or a state dict")
    folder: Any = getattr(given, "folder", None)
    recipe: Any = getattr(given, "recipe", None)
    if not isinstance(folder, str | Path) or recipe is None:
        return _Opened(name or role, given)
    kept = Path(folder) / FOLDER
    return _Opened(
        name or Path(folder).resolve().name,
        given,
        starting_weights(folder) if (kept / INITIAL).is_file() else None,
        initial_weights(folder) if (kept / (RANDOM if recipe.init else INITIAL)).is_file() else None,
        recipe.seed,
    )


def _alike(opened: dict[str, _Opened]) -> dict[str, Filters]:
    """The weights of every network, layer by layer, by its part in the comparison. Refuses other architectures."""
    module = next((one.network for one in opened.values() if isinstance(one.network, nn.Module)), None)
    like = weights(module) if module is not None else None
    found = {role: weights(one.network, like) for role, one in opened.items()}
    clean = found["clean"]
    if not clean and not found["robust"]:
        raise UsageError(
            f"{opened['clean'].name} has no layers with filters: purification is measured on the weights of linear and "
            "convolutional layers"
        )
    for role, other in found.items():
        if difference := _difference(clean, other, opened["clean"].name, opened[role].name):
            raise UsageError(
                f"{opened['clean'].name} and {opened[role].name} are of different architectures: {difference}; compare "
                "two checkpoints of one"
            )
        for name, weight in other.items():
            if not bool(weight.tensor.isfinite().all()):
                raise UsageError(
                    f"{opened[role].name} has weights in {name} that are not finite: its training diverged"
                )
    return found


def _difference(one: Filters, other: Filters, first: str, second: str) -> str:
    """The first layer that two networks do not share, in words."""
    for name in [*one, *(name for name in other if name not in one)]:
        if name not in one or name not in other:
            return f"only {first if name in one else second} has a layer {name}"
        shapes = [tuple(filters[name].tensor.shape) for filters in (one, other)]
        if shapes[0] != shapes[1]:
            return f"the weight of {name} has shape {shapes[0]} in {first} and {shapes[1]} in {second}"
    return ""


def _same(one: Filters, other: Filters) -> bool:
    return all(torch.equal(one[name].tensor.cpu(), other[name].tensor.cpu()) for name in one)


def _layers(found: dict[str, Filters]) -> dict[str, str]:
    """The layers to measure, by their name in the record; layers that share a weight are one: `encoder = decoder`."""
    clean, robust = found["clean"], found["robust"]
    named: dict[str, list[str]] = {}
    for name in clean:
        first = next(
            (known for known in named if tied(clean[known], clean[name]) and tied(robust[known], robust[name])), name
        )
        named.setdefault(first, []).append(name)
    return {" = ".join(names): first for first, names in named.items()}


# --- what is measured ------------------------------------------------------------------------------------------------


def _measured(name: str, key: str, found: dict[str, Filters]) -> Layer:
    """The neurons of one layer."""
    device = found["clean"][key].tensor.device
    rows = {role: filters[key].rows.to(device) for role, filters in found.items()}
    clean, robust = rows["clean"], rows["robust"]
    columns = {
        "clean_robust": angles.theta(clean, robust),
        "beta": angles.scaling(clean, robust),
        "removed": angles.removed(clean, robust),
        "clean_norm": clean.norm(dim=1),
        "robust_norm": robust.norm(dim=1),
    }
    if "initial" in rows:
        columns["initial_clean"] = angles.theta(rows["initial"], clean)
        columns["initial_robust"] = angles.theta(rows["initial"], robust)
    if "independent" in rows:
        columns["independent"] = angles.theta(clean, rows["independent"])
        columns["nearest_independent"] = angles.nearest(clean, rows["independent"])
    unmeasured = torch.full_like(columns["beta"], math.nan)
    dead = ~(angles.directed(clean) & angles.directed(robust))
    change = robust - clean
    rescaled = clean - columns["beta"].masked_fill(dead, 0)[:, None] * robust
    shape = (clean.shape[0], clean.shape[1])
    at = low_rank.ranks(shape)
    return Layer(
        name,
        list(found["clean"][key].tensor.shape),
        shape[1],
        {
            column: columns.get(column, unmeasured).masked_fill(dead, math.nan).cpu().numpy()
            for column in NEURON_COLUMNS
        },
        dead.nonzero()[:, 0].tolist(),
        at,
        low_rank.explained(change, at),
        low_rank.explained(rescaled, at),
        low_rank.explained_by_chance(shape, at),
        float((change**2).sum()),
    )


def _relation(opened: dict[str, _Opened], found: dict[str, Filters], layers: list[Layer]) -> tuple[str, str]:
    """How the robust network descends from the clean one, and what must be said of it."""
    clean, robust = opened["clean"], opened["robust"]
    start = found.get("robust start")
    if start is None:
        beyond = [(layer["clean_robust"][layer.live] > chance(layer.size, 0.99)) for layer in layers]
        share = float(np.concatenate(beyond).mean()) if any(len(one) for one in beyond) else math.nan
        if share >= 0.5:
            return UNKNOWN, ""
        return UNRELATED, (
            f"unrelated, by the weights: only in {100 * share:.0f} % of the neurons is theta(w, w′) larger than in "
            "99 % of pairs of random directions"
        )
    if _same(start, found["clean"]):
        return CONTINUED, ""
    if _began_with(robust, found.get("initial")):
        return SAME_START, (
            f"not a continuation: {robust.name} did not start from {clean.name}, but both go back to the same initial "
            "weights, so the whole of two trainings lies between them"
        )
    known = clean.seed is not None and robust.seed is not None and clean.seed != robust.seed
    seeds = f" (their seeds are {clean.seed} and {robust.seed})" if known else ""
    return UNRELATED, f"unrelated: the robust run did not start from the clean one{seeds}"


def _began_with(network: _Opened, initial: Filters | None) -> bool:
    """Whether a network's run goes back to these random weights."""
    if network.initial is None or initial is None:
        return False
    return _same(initial, weights(network.initial, initial))


def _told_apart(clean: str, robust: str, *given: Given) -> tuple[str, str]:
    """The names; two runs of one name are called by their paths."""
    if clean != robust:
        return clean, robust
    paths = [one if isinstance(one, str | Path) else getattr(one, "folder", "") for one in given]
    return f"{paths[0]}", f"{paths[1]}"


def _some(dead: list[int], shown: int = 8) -> str:
    more = f" and {len(dead) - shown} more" if len(dead) > shown else ""
    return ", ".join(map(str, dead[:shown])) + more
