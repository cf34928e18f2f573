"""Purification as a low-rank update: adversarial training of the clean weights, held to rank r, or to a single layer.

Version 4 of Allen-Zhu and Li's paper adds an experiment in which the change that adversarial training makes to the
clean weights has low rank. Its ranks, flattening and figures are not known to us: here W' = W + U V for every weight
flattened to (out, in · kh · kw), and biases are trained as usual (`bessemer.training.LowRank`). The other rows are our
own: one layer's weights and bias are trained, and the rest of the clean network stays as it is (`OnlyLayers`). All
train as the unrestricted network does, for as long and with the same learning rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bessemer import data, training
from bessemer.attacks import PGD
from bessemer.errors import unknown
from bessemer.evaluation import Stage, Suite
from bessemer.evaluation.paired import exceeds
from bessemer.papers.bang.networks import percent
from bessemer.papers.feature_purification import networks
from bessemer.papers.judged import judged
from bessemer.records import Claim, Evaluation, Result, Share, provenance
from bessemer.threat import parse
from bessemer.training import Moment

NAME = "purification-low-rank"
CLEAN, FULL = "clean", networks.STRONGEST


@dataclass(frozen=True)
class Scale:
    """Which architecture, which ranks and layers are trained, and how many test images are attacked."""

    architecture: str
    ranks: tuple[int, ...]
    layers: tuple[str, ...]
    images: int

    @property
    def low_rank(self) -> dict[int, str]:
        """The networks of low rank, by rank."""
        return {rank: f"low-rank-{rank}" for rank in self.ranks}

    @property
    def layer_wise(self) -> dict[str, str]:
        """The networks of which one layer was trained, by layer."""
        return {layer: f"only-{layer}" for layer in self.layers}


SCALES = {
    "smoke": Scale("lenet", (1, 4), ("conv2",), 20),
    "cpu": Scale("alexnet", (1, 2, 4, 8, 16), ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6"), 1000),
    "full": Scale("alexnet", (1, 2, 4, 8, 16, 32), ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6"), 10_000),
}


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, attack and compare; networks and evaluations that are in `runs` already are not made again.

    A picture is left in `runs`, as `purification-low-rank-SCALE.png`. watch_training, watch_evaluation: given a
    network's name, what to call as its training or evaluation goes on. Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    plan = SCALES[scale]
    found: dict[str, Evaluation] = {}
    for which in (CLEAN, FULL, *plan.low_rank.values(), *plan.layer_wise.values()):
        folder = networks.run(plan.architecture, which, scale, runs, data_dir, watch_training)
        found[which] = _attacked(folder, plan, scale, data_dir, watch_evaluation(folder.name))
    picture(found, plan, runs / f"{NAME}-{scale}.png")
    facts = provenance(
        seed=0,
        seconds=round(time.monotonic() - began, 1),
        threads=torch.get_num_threads(),
        evaluations={which: evaluation.provenance for which, evaluation in found.items()},
    )
    numbers = {which: figures(evaluation) for which, evaluation in found.items()}
    return Result(NAME, scale, claims(found, plan), numbers, facts)


def _attacked(
    folder: Path, plan: Scale, scale: str, data_dir: Path | None, watch: Callable[[Stage], None]
) -> Evaluation:
    """PGD-20 on both losses, at the radius that the unrestricted network was trained for."""
    model: Any = training.load(folder, networks.device(scale))
    name, settings = model.recipe.data
    dataset = data.load(name, data_dir, **settings)
    ball = parse(networks.threat(plan.architecture, FULL))
    suite = Suite("pgd-20", {"PGD-20": PGD(ball, steps=20), "PGD-20, margin loss": PGD(ball, steps=20, loss="margin")})
    return judged(model, dataset, suite, folder, samples=plan.images, watch=watch)


def robust(evaluation: Evaluation) -> Share:
    """The share of images that stand under both attacks."""
    return evaluation.worst_case() or Share(0, 0)


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """Clean and robust accuracy in %, robust as the worst of both attacks and of each."""
    return {
        "clean": percent(evaluation.clean_accuracy()),
        "robust": percent(robust(evaluation)),
        **{rows.name: percent(evaluation.robust_accuracy(rows.name)) for rows in evaluation.attacks},
        "images": len(evaluation),
    }


def claims(found: dict[str, Evaluation], plan: Scale) -> list[Claim]:
    """What low rank would mean, and whether it held. No figure of the paper's own experiment is known to us."""
    clean, full = robust(found[CLEAN]).value, robust(found[FULL]).value
    by_rank = {rank: found[which] for rank, which in plan.low_rank.items()}
    by_layer = {layer: found[which] for layer, which in plan.layer_wise.items()}
    lowest, highest = by_rank[min(by_rank)], by_rank[max(by_rank)]
    steps = list(by_rank.values())
    best = max(by_layer, key=lambda layer: robust(by_layer[layer]).value)

    def won(evaluation: Evaluation) -> float:
        """The share of what unrestricted training wins."""
        return (robust(evaluation).value - clean) / (full - clean) if full > clean else 0.0

    def each(evaluations: dict[Any, Evaluation], prefix: str = "") -> str:
        return ", ".join(f"{prefix}{key} {100 * won(one):.0f} %" for key, one in evaluations.items())

    return [
        Claim(
            "Adversarial training of the clean weights makes them robust: it wins at least 10 points",
            full - clean >= 0.10,
            f"clean {robust(found[CLEAN])}, adversarially trained {robust(found[FULL])}",
        ),
        Claim(
            f"An update of rank {max(by_rank)} wins at least 90 % of what unrestricted training wins",
            won(highest) >= 0.9,
            each(by_rank, "rank "),
        ),
        Claim("An update of rank 4 wins at least half of it", won(by_rank[4]) >= 0.5, each(by_rank, "rank ")),
        Claim(
            "Already an update of the lowest rank is more robust than the clean network",
            outlasts(lowest, found[CLEAN]),
            f"rank {min(by_rank)} {robust(lowest)}, clean {robust(found[CLEAN])}",
        ),
        Claim(
            "A higher rank is never significantly less robust than the rank before it, and the highest more than the "
            "lowest",
            not any(outlasts(lower, higher) for lower, higher in pairwise(steps)) and outlasts(highest, lowest),
            ", ".join(f"rank {rank} {robust(one)}" for rank, one in by_rank.items()),
        ),
        Claim(
            "No layer carries it alone: the best of them wins less than 90 %",
            won(by_layer[best]) < 0.9,
            each(by_layer),
        ),
        Claim(
            "A thin change of all layers does more than any change of one layer: the highest rank is more robust than "
            "the best layer",
            outlasts(highest, by_layer[best]),
            f"rank {max(by_rank)} {robust(highest)}, {best} {robust(by_layer[best])}",
        ),
    ]


def outlasts(one: Evaluation, other: Evaluation) -> bool:
    """Whether more images stand than of another network: by a point, and not by chance (exact McNemar, p < 0.01)."""
    first, second = (
        np.logical_and.reduce([each.survivors(rows.name) for rows in each.attacks]) for each in (one, other)
    )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    enough = only_first - only_second >= 0.01 * len(one)
    return enough and exceeds(only_first, only_first + only_second, 0.5)


def picture(found: dict[str, Evaluation], plan: Scale, path: Path) -> None:
    """Clean and robust accuracy over the rank and layer by layer, between clean and unrestricted training."""
    settings = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    with matplotlib.style.context(["default", {**settings, "grid.color": "#dddddd", "axes.axisbelow": True}]):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        low_rank = {str(rank): which for rank, which in plan.low_rank.items()}
        for panel, rows, title in (
            (panels[0], low_rank, "an update of rank r of every layer"),
            (panels[1], plan.layer_wise, "one layer alone"),
        ):
            every = {"clean": CLEAN, **rows, "full": FULL}
            places = np.arange(len(every))
            for what, label, colour, marker in (
                (Evaluation.clean_accuracy, "clean accuracy", "#00798c", "s"),
                (robust, "robust accuracy", "#d1495b", "o"),
            ):
                shares = [what(found[which]) for which in every.values()]
                values = np.array([100 * share.value for share in shares])
                spread = np.abs(100 * np.array([share.interval for share in shares]).T - values)
                panel.errorbar(
                    places, values, spread, color=colour, marker=marker, linestyle="none", capsize=3, label=label
                )
            panel.set_xticks(places, list(every))
            panel.set_xlabel(title)
            panel.set_ylim(0, None)
        panels[0].set_ylabel("test images (%)")
        panels[0].legend(loc="upper right", fontsize=8)
        figure.savefig(path, dpi=150, metadata={"Software": None})
