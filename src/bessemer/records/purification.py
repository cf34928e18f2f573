"""What training did to the weights of each neuron: angles between two networks, as plain data.

A `Purification` compares a clean network with weights w and a robust one with weights w′, neuron by neuron, with
theta(a, b) = |<a, b>| / (|a| |b|); w⁰ are the weights before any training. After Allen-Zhu and Li, "Feature
purification: how adversarial training performs robust deep learning", 2021, arXiv:2005.10190.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincinv

from bessemer.errors import FileError
from bessemer.records.evaluation import Share
from bessemer.records.files import read_record, write_record

Values = npt.NDArray[np.float64]

# one value per neuron, in the order of the weight's rows; NaN where it was not measured or the neuron is dead
NEURON_COLUMNS = (
    "initial_clean",  # theta(w⁰, w)
    "initial_robust",  # theta(w⁰, w′)
    "clean_robust",  # theta(w, w′)
    "independent",  # theta(w, u), with u the same neuron of an independently trained network
    "nearest_independent",  # the largest theta(w, u) over all neurons u of that layer
    "beta",  # <w, w′> / |w′|²
    "removed",  # |v| / |w|, with v = w - beta w′
    "clean_norm",  # |w|
    "robust_norm",  # |w′|
)

PURIFICATIONS = Path("records") / "purification"  # where a run's folder keeps them

CONTINUED, SAME_START, UNRELATED, UNKNOWN = "continued", "same start", "unrelated", "unknown"
SHOWN_RANKS = (1, 8, 64)  # in tables
_DIGITS = 9  # of a float in a file: what a float32 has


@dataclass(frozen=True)
class Layer:
    """The neurons of one layer: the rows of its weight, each with `size` numbers.

    shape: of the weight as the network keeps it. dead: neurons without a direction, in the clean or the robust network;
    they are counted nowhere. ranks, explained, rescaled, by_chance: the share of the squared norm of W′ - W that its
    best approximation of each rank holds; the same of V = W - diag(beta) W′; and of a matrix of independent normal
    numbers. change: |W′ - W|² (0: the layer was not trained, and nothing is explained).
    """

    name: str
    shape: list[int]
    size: int
    columns: dict[str, Values]
    dead: list[int]
    ranks: list[int]
    explained: list[float]
    rescaled: list[float]
    by_chance: list[float]
    change: float

    def __len__(self) -> int:
        return len(self.columns["beta"])

    def __getitem__(self, column: str) -> Values:
        return self.columns[column]

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Which neurons have a direction in both networks."""
        alive = np.ones(len(self), bool)
        alive[self.dead] = False
        return alive

    @property
    def ratio(self) -> Values:
        """|v| / |beta w′| of every live neuron: the tangent of the angle between w and w′."""
        with np.errstate(divide="ignore"):
            return self["removed"][self.live] / self["clean_robust"][self.live]

    def outweighs(self) -> Share:
        """The live neurons with beta > 0 and |beta w′| > |v|: more of w was kept than removed."""
        kept = (self["beta"][self.live] > 0) & (self.ratio < 1)
        return Share(int(kept.sum()), len(kept))

    def explained_at(self, rank: int) -> float:
        """The share of W′ - W that an update of that rank, a power of two, holds; NaN of no change."""
        if self.change == 0:
            return math.nan
        return self._at(self.explained, rank)

    def removed_at(self, rank: int) -> float:
        """The same share of V; NaN where nothing was removed."""
        return self._at(self.rescaled, rank)

    def by_chance_at(self, rank: int) -> float:
        """The same share of a matrix of independent normal numbers."""
        return self._at(self.by_chance, rank)

    def _at(self, shares: list[float], rank: int) -> float:
        return 1.0 if rank >= min(len(self), self.size) else shares[self.ranks.index(rank)]

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        lists = {key: _listed(getattr(self, key)) for key in ("explained", "rescaled", "by_chance")}
        facts = {key: getattr(self, key) for key in ("name", "shape", "size", "dead", "ranks", "change")}
        return {**facts, **lists, "columns": {name: _listed(self[name]) for name in NEURON_COLUMNS}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Layer:
        """The layer that `to_json` described."""
        facts = {key: record[key] for key in ("name", "shape", "size", "dead", "ranks", "change")}
        lists = {key: _values(record[key]).tolist() for key in ("explained", "rescaled", "by_chance")}
        return cls(**facts, **lists, columns={name: _values(record["columns"][name]) for name in NEURON_COLUMNS})


@dataclass(frozen=True)
class Purification:
    """Two networks of one architecture, compared neuron by neuron.

    clean, robust, initial, independent: what the networks are called; the last two are empty where there was none.
    relation: `continued` (the robust network was trained from the clean weights), `same start` (both from the same
    initial weights), `unrelated` or `unknown`. remarks: what a reader of the figures must know, in sentences.
    """

    clean: str
    robust: str
    initial: str
    independent: str
    relation: str
    layers: list[Layer]
    remarks: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What was compared, as a file's name."""
        parts = ["purification", self.clean, self.robust, self.independent]
        return "_".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts if part)

    def column(self, name: str) -> Values:
        """The measured values of every live neuron of every layer, one layer after another."""
        values = np.concatenate([layer[name][layer.live] for layer in self.layers])
        return values[~np.isnan(values)]

    def outweighs(self) -> Share:
        """The live neurons of all layers with beta > 0 and |beta w′| > |v|."""
        shares = [layer.outweighs() for layer in self.layers]
        return Share(sum(share.count for share in shares), sum(share.total for share in shares))

    def explained_at(self, rank: int) -> float:
        """The share of the whole network's change that a change of that rank in every layer holds; NaN of no change."""
        parts = [(layer.explained_at(rank), layer.change) for layer in self.layers if layer.change > 0]
        whole = sum(change for _, change in parts)
        return sum(share * change for share, change in parts) / whole if whole else math.nan

    def summary(self) -> list[dict[str, Any]]:
        """A row per layer, and one for all: how many neurons, medians of theta, shares; plain numbers, for tables."""
        return [self._row(layer.name, [layer]) for layer in self.layers] + [self._row("all layers", self.layers)]

    def _row(self, name: str, layers: list[Layer]) -> dict[str, Any]:
        some = Purification(self.clean, self.robust, self.initial, self.independent, self.relation, layers)
        thetas = ("initial_clean", "initial_robust", "clean_robust", "independent", "nearest_independent")
        outweighs = some.outweighs()
        return {
            "layer": name,
            "neurons": outweighs.total,
            "dead": sum(len(layer.dead) for layer in layers),
            **{theta: _median(some.column(theta)) for theta in thetas},
            "chance": chance(layers[0].size, 0.5) if len(layers) == 1 else math.nan,
            "outweighs": outweighs.value,
            "ratio": _median(np.concatenate([layer.ratio for layer in layers])),
            **{f"rank_{rank}": some.explained_at(rank) for rank in SHOWN_RANKS},
        }

    def to_json(self) -> dict[str, Any]:
        """The whole comparison as JSON values (NaN becomes null); `Purification.from_json` reads it back."""
        facts = ("clean", "robust", "initial", "independent", "relation", "remarks", "provenance")
        layers = [layer.to_json() for layer in self.layers]
        return {"kind": "purification", **{key: getattr(self, key) for key in facts}, "layers": layers}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Purification:
        """The comparison that `to_json` described."""
        facts = ("clean", "robust", "initial", "independent", "relation", "remarks", "provenance")
        return cls(**{key: record[key] for key in facts}, layers=[Layer.from_json(layer) for layer in record["layers"]])

    def save(self, folder: str | Path) -> Path:
        """Write it (with its digest) into a folder, named after the networks; returns the path. Raises `FileError`."""
        path = Path(folder) / f"{self.name}.json"
        self.write(path)
        return path

    def write(self, path: str | Path) -> None:
        """Write it (with its digest) under a name of your own. Raises `FileError`."""
        write_record(Path(path), self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Purification:
        """The comparison in a file that `save` wrote. Raises `FileError` where it is damaged or another kind."""
        record = read_record(Path(path))
        try:
            return cls.from_json(record)
        except (KeyError, TypeError, ValueError) as problem:
            raise FileError(f"{path} is no purification of this version of Bessemer: {problem}") from problem


def chance(size: int, share: float) -> float:
    """The theta that such a share of pairs of random directions stays under, for vectors of `size` numbers.

    <a, b>² of independent uniform unit vectors follows Beta(1/2, (size - 1)/2). One number has no direction but its
    sign: theta is then always 1.
    """
    return 1.0 if size == 1 else math.sqrt(float(betaincinv(0.5, (size - 1) / 2, share)))


def below_by_chance(size: int, theta: npt.ArrayLike) -> Values:
    """The share of pairs of random directions with at most that theta: the inverse of `chance`."""
    theta = np.asarray(theta, np.float64)
    return np.where(theta < 1, 0.0, 1.0) if size == 1 else np.asarray(betainc(0.5, (size - 1) / 2, theta**2))


def _median(values: Values) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _listed(values: Sequence[float] | Values) -> list[float | None]:
    return [None if math.isnan(value) else float(f"{value:.{_DIGITS}g}") for value in np.asarray(values).tolist()]


def _values(values: list[float | None]) -> Values:
    return np.array([math.nan if value is None else value for value in values], np.float64)
