"""One experiment of the laboratory: train clean, train adversarially, and measure both networks on fresh samples.

    folder/clean, folder/robust     the two trainings: checkpoints and what was noted along the way
           NAME.json                what one measurement found, made once

Everything that was stopped goes on where it was: a training from its newest checkpoint, the rest with the measurement
in hand.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bessemer.arithmetic import flushed
from bessemer.attacks import FGSM, PGD
from bessemer.errors import UsageError
from bessemer.purification.perturbations import hoyer, participation
from bessemer.purification.sparse_coding.certificate import certify
from bessemer.purification.sparse_coding.comparisons import comparisons, fit_comparison, withstood
from bessemer.purification.sparse_coding.data import Samples, SparseCoding, Stream
from bessemer.purification.sparse_coding.dense_direction import DenseDirection
from bessemer.purification.sparse_coding.features import decomposition, features, live
from bessemer.purification.sparse_coding.network import SymmetricReLU
from bessemer.purification.sparse_coding.standing import after, after_standard, attacks, right
from bessemer.purification.sparse_coding.training import Phase, Ramped, Regularised, Settled, Thresholds
from bessemer.randomness import subseed
from bessemer.records import read_record, write_record
from bessemer.threat import L2, Threat
from bessemer.training.methods import Adversarial

WatchPart = Callable[[str], Callable[[int, int], None]]  # (part) -> (done, of how many)
BINS = 40
FEW = 200  # samples for what is costly
JUDGED_OTHERS = 500  # samples for other models


@dataclass(frozen=True)
class Laboratory:
    """An experiment. Settings that are not named here follow from the dimension, in `clean` and `robust`.

    source: the samples. threat: where both networks are judged, `box=None`. pairs: of neurons, 2 d unless given.
    thresholds: of clean training. stretch: the radius of adversarial training in units of the threat's. seed: of
    weights and samples. fixed: samples drawn once and used again, instead of fresh ones. judged, certified: how many
    fresh samples the attacks and the certificate see. measured: which of `MEASUREMENTS`, all where none is named.
    Raises `UsageError` for a radius at which samples of different labels meet.
    """

    source: SparseCoding
    threat: Threat
    pairs: int | None = None
    thresholds: Thresholds = Thresholds()
    clean_iterations: int = 1500
    robust_iterations: int = 600
    rate: float = 1.0
    stretch: float = 1.15
    smoothing: float = 0.3
    batch: int = 500
    fixed: int | None = None
    seed: int = 0
    judged: int = 1000
    certified: int = 500
    measured: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.threat.box is not None:
            raise UsageError("samples are no pixels; give the threat box=None")
        if isinstance(self.threat, L2) and self.threat.eps >= (reach := self.source.reach):
            raise UsageError(
                f"at an L2 radius of {self.threat.eps:g} even the true signal cannot be robust: from {reach:.3g} on, "
                "for half of all samples a code of the other label lies within twice the radius; lower the radius"
            )

    @property
    def neurons(self) -> int:
        """Symmetric pairs."""
        return self.pairs or 2 * self.source.dim

    @property
    def clean(self) -> Phase:
        """Rates as d/100, and the regulariser as 1/(4 d): what a weight feels of one atom falls as 1/d."""
        d = self.source.dim
        width = 2 * d / self.neurons
        return Phase(Regularised(0.25 / d), d / 100 * width, self.clean_iterations, Settled(0.3), self.thresholds)

    @property
    def robust(self) -> Phase:
        """FGM on the network as it stands, thresholds frozen."""
        d = self.source.dim
        width = 2 * d / self.neurons
        attack = FGSM(replace(self.threat, eps=self.stretch * self.threat.eps))
        return Phase(
            Adversarial(attack), self.rate * 1.5 * math.sqrt(d / 512) * width, self.robust_iterations, Ramped()
        )

    def run(self, folder: Path, watch: WatchPart) -> dict[str, Any]:
        """Everything, or what is missing of it in `folder`: plain numbers by the name of the measurement.

        watch: given the name of a training or measurement, what to call as it goes on.
        Raises `UsageError` where `folder` holds another experiment.
        """
        self._claim(folder)
        networks = self._trained(folder, watch)
        found: dict[str, Any] = {}
        for name in self.measured or MEASUREMENTS:
            path = folder / f"{name}.json"
            if not path.is_file():
                began = time.monotonic()
                measured = MEASUREMENTS[name](self, networks, watch(name))
                write_record(path, {**measured, "seconds": round(time.monotonic() - began, 1)})
            found[name] = read_record(path)
        return found

    def _claim(self, folder: Path) -> None:
        """Settings are written once; another experiment's folder is refused."""
        path, mine = folder / "settings.json", {"settings": repr(self)}
        if path.is_file() and read_record(path) != mine:
            raise UsageError(
                f"{folder} holds another experiment ({read_record(path)['settings']}); take another folder"
            )
        if not path.is_file():
            write_record(path, mine)

    @flushed()
    def _trained(self, folder: Path, watch: WatchPart) -> Networks:
        source = self.source
        torch.manual_seed(subseed(self.seed, 0))
        scale = 0.002 * math.sqrt(512 / source.dim)
        network = SymmetricReLU(source.dim, self.neurons, scale, self.smoothing)
        initial = network.weight.detach().clone()
        lines = {}
        for number, name in enumerate(("clean", "robust"), 1):
            stream = Stream(source, self.batch, subseed(self.seed, number), self.fixed)
            phase: Phase = getattr(self, name)
            lines[name] = phase.train(network, stream, folder / name, self._observe, watch(name), self.seed)
            if name == "clean":
                clean = network.twin()
        return Networks(initial, clean, network, lines)

    def _observe(self, network: SymmetricReLU) -> dict[str, Any]:
        """What is noted while a network trains, on a few fresh samples."""
        samples = self._few
        held = features(network.weight.detach(), self.source)
        some = {
            "clean": right(network, samples.inputs, samples.labels),
            "dense direction": after(self.attacks["dense direction"], network, samples.inputs, samples.labels),
            "FGM": after(self.attacks["FGM"], network, samples.inputs, samples.labels),
            "PGD-10": after(PGD(self.threat, steps=10, random_start=False), network, samples.inputs, samples.labels),
        }
        return {name: share(one) for name, one in some.items()} | {
            name: _median(getattr(held, name)) for name in ("purity", "top3", "mixture", "dense")
        }

    @cached_property
    def attacks(self) -> dict[str, Any]:
        """What both networks meet."""
        return attacks(self.source, self.threat)

    @cached_property
    def samples(self) -> Samples:
        """Fresh ones, to judge with."""
        return self.source.draw(self.judged, subseed(self.seed, 10))

    @cached_property
    def _few(self) -> Samples:
        return self.source.draw(FEW, subseed(self.seed, 11))


@dataclass(frozen=True)
class Networks:
    """The initial weights, both networks, and what was noted while they trained."""

    initial: Float[Tensor, "pairs d"]
    clean: SymmetricReLU
    robust: SymmetricReLU
    lines: dict[str, list[dict[str, Any]]]

    @property
    def both(self) -> dict[str, SymmetricReLU]:
        """By name."""
        return {"clean": self.clean, "robust": self.robust}


def share(which: Bool[Tensor, " n"]) -> float:
    """Of all."""
    return which.double().mean().item()


def _accuracy(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """How many of the fresh samples each network gets right, unharmed and after each attack; `worst` after all."""
    inputs, labels = lab.samples.inputs, lab.samples.labels
    found: dict[str, Any] = {"samples": len(labels), "radius": lab.threat.eps}
    for done, (name, network) in enumerate(networks.both.items(), 1):
        worst = right(network, inputs, labels)
        found[name] = {"clean": share(worst)}
        for attack_name, attack in lab.attacks.items():
            standing = after(attack, network, inputs, labels)
            found[name][attack_name], worst = share(standing), worst & standing
        found[name]["worst"] = share(worst)
        watch(done, 2)
    return found


def _standard(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """The suite `standard` on the first of the samples: what stands after it, and after PGD-50 as well."""
    inputs, labels = lab.samples.inputs[:FEW], lab.samples.labels[:FEW]
    found: dict[str, Any] = {"samples": len(labels)}
    for done, (name, network) in enumerate(networks.both.items(), 1):
        pgd = after(lab.attacks["PGD-50"], network, inputs, labels)
        standing = after_standard(network, inputs, labels, lab.threat, right(network, inputs, labels))
        found[name] = {"standard": share(standing), "PGD-50": share(pgd), "both": share(standing & pgd)}
        watch(done, 2)
    return found


def _certificate(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """Shares certified against any l2 perturbation, at the radius and at three quarters of it."""
    if not isinstance(lab.threat, L2):
        return {}
    inputs, labels = lab.samples.inputs[: lab.certified], lab.samples.labels[: lab.certified]
    found: dict[str, Any] = {"samples": len(labels)}
    parts = [(name, factor) for name in networks.both for factor in (1.0, 0.75)]
    for number, (name, factor) in enumerate(parts):
        network = networks.both[name]

        def within(done: int, total: int, number: int = number) -> None:
            watch(number * total + done, len(parts) * total)

        proven = certify(network.weight.detach(), network.biases, inputs, labels, factor * lab.threat.eps, within)
        found.setdefault(name, {})[str(factor)] = share(proven.certified)
    return found


def _radii(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """The share that stands at ever larger radii; what fell once stays fallen. r50: where the curve crosses a half."""
    inputs, labels = lab.samples.inputs[:500], lab.samples.labels[:500]
    powers = [-3, -2.5, -2, -1.5, *(step / 4 for step in range(-4, 11))]
    radii = [2.0**power * lab.threat.eps for power in powers]
    found: dict[str, Any] = {"radii": radii}
    for number, (name, network) in enumerate(networks.both.items()):
        standing, curve = right(network, inputs, labels), []
        at_first = share(standing)
        for done, radius in enumerate(radii, 1):
            ball = replace(lab.threat, eps=radius)
            for attack in (DenseDirection(ball, lab.source.dense_direction), PGD(ball, steps=50, random_start=False)):
                places = standing.nonzero()[:, 0]
                standing[places] = after(attack, network, inputs[places], labels[places])
            curve.append(share(standing))
            watch(number * len(radii) + done, 2 * len(radii))
        found[name] = {
            "standing": curve,
            **{f"r{part}": crossing(radii, curve, part / 100, at_first) for part in (95, 50, 5)},
        }
    return found


def crossing(radii: list[float], standing: list[float], level: float, at_first: float) -> float | None:
    """Where a falling curve comes down to a level, straight between its points; None where it never does.

    at_first: the curve at radius 0; where that is no higher than the level, so is the answer: 0.
    """
    if at_first <= level:
        return 0.0
    points = list(zip([0.0, *radii], [at_first, *standing], strict=True))
    for (near, above), (far, below) in itertools.pairwise(points):
        if below <= level < above:
            return near + (far - near) * (above - level) / (above - below)
    return None


def _features(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """What the live neurons hold before and after, and how the one comes from the other."""
    inputs = lab.samples.inputs
    clean, robust = networks.clean.weight.detach(), networks.robust.weight.detach()
    alive = live(clean, networks.clean.biases, inputs) & live(robust, networks.robust.biases, inputs)
    found: dict[str, Any] = {"neurons": lab.neurons, "live": int(alive.sum())}
    for name, weights in (("clean", clean), ("robust", robust)):
        found[name] = {key: _described(value[alive]) for key, value in vars(features(weights, lab.source)).items()}
    split = decomposition(networks.initial, clean, robust, lab.source)
    found["decomposition"] = {key: _described(value[alive]) for key, value in vars(split).items()}
    found["decomposition"]["kept above 0.8"] = share(split.kept[alive] > 0.8)
    found["decomposition"]["beta w' longer than v"] = share((split.beta > 0)[alive] & (split.ratio > 1)[alive])
    found["spectral norm"] = {
        name: torch.linalg.matrix_norm(one, 2).item() for name, one in (("clean", clean), ("robust", robust))
    }
    watch(1, 1)
    return found


def _perturbations(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """How dense the perturbations of each network are in the atoms, at the radius, and how they lie to M w*."""
    inputs, labels = lab.samples.inputs[:FEW], lab.samples.labels[:FEW]
    found = {}
    for done, (name, network) in enumerate(networks.both.items(), 1):
        change = PGD(lab.threat, steps=50, random_start=False)(network, inputs, labels) - inputs
        codes = change @ lab.source.atoms.T
        along = (change @ lab.source.dense_direction) / change.norm(dim=1)
        active = lab.samples.codes.dense(lab.source.dim)[:FEW] != 0
        found[name] = {
            "participation": _described(participation(codes)),
            "hoyer": _described(hoyer(codes)),
            "dense": _described(along.abs()),
            "on active atoms": _described((codes.square() * active).sum(1) / codes.square().sum(1)),
        }
        watch(done, 2)
    return found


def _ranks(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """What is robust already when only the best rank-r part of the change W′ − W is made."""
    inputs, labels = lab.samples.inputs[:FEW], lab.samples.labels[:FEW]
    clean, robust = networks.clean.weight.detach(), networks.robust.weight.detach()
    left, sizes, right_ = torch.linalg.svd(robust - clean, full_matrices=False)
    ranks = [0, *(2**power for power in range(int(math.log2(len(sizes))) + 1)), len(sizes)]
    found: dict[str, Any] = {"ranks": sorted(set(ranks)), "explained": [], "clean": [], "PGD-50": []}
    trial = networks.robust.twin()
    for done, rank in enumerate(found["ranks"], 1):
        with torch.no_grad():
            trial.weight.copy_(clean + (left[:, :rank] * sizes[:rank]) @ right_[:rank])
        found["explained"].append((sizes[:rank].square().sum() / sizes.square().sum()).item())
        found["clean"].append(share(right(trial, inputs, labels)))
        found["PGD-50"].append(share(after(lab.attacks["PGD-50"], trial, inputs, labels)))
        watch(done, len(found["ranks"]))
    return found


def _training(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """What was noted along the way."""
    watch(1, 1)
    return networks.lines


def _comparisons(lab: Laboratory, networks: Networks, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """What other models withstand at the same L2 radius, trained clean and adversarially."""
    if not isinstance(lab.threat, L2):
        return {}
    inputs, labels = lab.samples.inputs[:JUDGED_OTHERS], lab.samples.labels[:JUDGED_OTHERS]
    models = comparisons(lab.source, seed=lab.seed)
    found: dict[str, Any] = {}
    trainings = [(name, training) for name in models for training in ("clean", "adversarial")]
    for done, (name, training) in enumerate(trainings, 1):
        model = models[name]()
        stream = Stream(lab.source, lab.batch, subseed(lab.seed, 20))
        fit_comparison(model, stream, lab.threat.eps if training == "adversarial" else None)
        found.setdefault(name, {})[training] = withstood(model, inputs, labels, lab.source, lab.threat.eps)
        watch(done, len(trainings))
    return found


MEASUREMENTS: dict[str, Callable[[Laboratory, Networks, Callable[[int, int], None]], dict[str, Any]]] = {
    "training": _training,
    "features": _features,
    "accuracy": _accuracy,
    "standard": _standard,
    "radii": _radii,
    "perturbations": _perturbations,
    "ranks": _ranks,
    "certificate": _certificate,
    "comparisons": _comparisons,
}


def _median(values: Tensor) -> float:
    return values.double().median().item()


def _described(values: Tensor) -> dict[str, Any]:
    """Mean, quantiles and a histogram."""
    values = values.double()
    counts, edges = torch.histogram(values.clamp(-1e3, 1e3), BINS)
    quantiles = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    names = ("q5", "median", "q95")
    return {
        "mean": values.mean().item(),
        **dict(zip(names, quantiles, strict=True)),
        "histogram": {"counts": counts.tolist(), "low": edges[0].item(), "high": edges[-1].item()},
    }
