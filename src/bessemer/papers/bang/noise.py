"""Figures 3 and 5: how often Gaussian noise turns a network's answer, over the noise level and the course of training.

A regularly trained network and one trained with BANG (R0 and B1 of Table 1; R0 and B0 of Table 2), on test images that
both classify correctly at every stage looked at; where a class has too few of them, others are added. The paper does
not say whether distorted pixels are clipped; here they are, to [0, 1]. Every stage, level and network meets the same
noise, scaled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bessemer import randomness
from bessemer.arithmetic import exact, flushed
from bessemer.data import Split
from bessemer.errors import unknown
from bessemer.evaluation import Stage
from bessemer.papers.bang import drawing
from bessemer.papers.bang.networks import TABLES, described, trained
from bessemer.records import Claim, Result, provenance, read_record, write_record
from bessemer.training import Moment
from bessemer.training.checkpoint import FOLDER, Checkpoint, step_name

FIGURES = {"lenet": 3, "cifar-quick": 5}
LEVELS = {"lenet": range(10, 101, 10), "cifar-quick": range(4, 41, 4)}  # standard deviations, in grey levels
# at the last stage and the strongest noise: the share turned (%), regular and BANG
PUBLISHED = {"lenet": (20.0, 3.0), "cifar-quick": (46.0, 39.1)}


@dataclass(frozen=True)
class Scale:
    """iterations: of training; None for the paper's. images: of each class. distortions: of each image and level.

    among: the first so many test images; None for all.
    """

    iterations: int | None
    images: int
    distortions: int
    among: int | None = None


SCALES = {
    "lenet": {"smoke": Scale(150, 1, 2, 100), "cpu": Scale(None, 10, 100), "full": Scale(None, 100, 1000)},
    "cifar-quick": {"smoke": Scale(30, 1, 2, 100), "cpu": Scale(4000, 10, 50), "full": Scale(None, 100, 1000)},
}


def run(
    table: str,
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train the two networks, distort, compare; networks and stages that are in `runs` already are not made again.

    table: `lenet` (Figure 3) or `cifar-quick` (Figure 5). A picture is left in `runs`. watch_training: given a name,
    what to call as that training goes on. Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES[table]:
        raise unknown("scale", scale, SCALES[table])
    began = time.monotonic()
    plan, printed = SCALES[table][scale], TABLES[table]
    length = printed.recipe(printed.evolving[0], plan.iterations).training
    every, last = length.keep_every, length.iterations
    stages = list(range(every, last + 1, every))
    networks: dict[str, tuple[nn.Module, Path]] = {}
    for name in printed.evolving:
        model, dataset, folder = trained(table, name, runs, data_dir, watch_training(name), plan.iterations)
        networks[name] = model, folder
    candidates = dataset.test.first(plan.among)
    steady = right_throughout(networks.values(), stages, candidates)
    chosen = of_each_class(candidates.labels, steady, plan.images)
    images = candidates.at(chosen)[0]
    found = {
        name: course(
            table, *networks[name], stages, images, chosen, plan.distortions, watch_evaluation(f"{name}, noise")
        )
        for name in networks
    }
    name = f"bang-figure{FIGURES[table]}"
    amount = (
        f"{len(chosen)} test images ({int(steady[chosen].sum())} right throughout), {plan.distortions} distortions of "
        "each at every level"
    )
    title = f"{printed.title}, {amount} (scale {scale})"
    picture(table, stages, found, runs / f"{name}-{scale}.png", title)
    numbers = {
        "levels": list(LEVELS[table]),
        "iterations": stages,
        "images": len(chosen),
        "right_throughout": int(steady[chosen].sum()),
        "distortions": plan.distortions,
        "turned": {one: shares.round(3).tolist() for one, shares in found.items()},
    }
    facts = provenance(seed=0, seconds=round(time.monotonic() - began, 1), threads=torch.get_num_threads())
    return Result(name, scale, claims(table, found), numbers, facts)


@flushed()
@exact()
@torch.no_grad()
def right_throughout(
    networks: Iterable[tuple[nn.Module, Path]], stages: list[int], split: Split, size: int = 1000
) -> Tensor:
    """Which images (n,) every network classifies correctly at every stage."""
    right = torch.ones(len(split), dtype=torch.bool)
    for model, folder in networks:
        for stage in stages:
            _at(model, folder, stage)
            # those that are out already need not be asked about again
            rows = right.nonzero()[:, 0]
            for part in rows.split(size):
                images, labels = split.at(part)
                right[part] = model(images).argmax(1) == labels
    return right


def of_each_class(labels: Tensor, steady: Tensor, count: int) -> Tensor:
    """The places of `count` images of every class, class by class: the first steady ones, then, if need be, others."""
    chosen = []
    for label in range(int(labels.max()) + 1):
        places = (labels == label).nonzero()[:, 0]
        chosen.append(places[(~steady[places]).int().argsort(stable=True)][:count])
    return torch.cat(chosen)


def course(
    table: str,
    model: nn.Module,
    folder: Path,
    stages: list[int],
    images: Float[Tensor, "n c h w"],
    index: Tensor,
    distortions: int,
    watch: Callable[[Stage], None],
) -> drawing.Grid:
    """The share of distortions that are classified otherwise (%), by level and stage; kept in the run's `records`.

    index: the images' places in the test set.
    """
    path = folder / "records" / f"noise_{len(index)}_{distortions}.json"
    record: dict[str, Any] = read_record(path) if path.is_file() else {}
    if record.get("images") != index.tolist():
        record = {"images": index.tolist(), "turned": {}}
    for place, stage in enumerate(stages):
        if str(stage) not in record["turned"]:
            _at(model, folder, stage)
            record["turned"][str(stage)] = turned(model, images, index, list(LEVELS[table]), distortions)
            write_record(path, record)
        watch(Stage("Gaussian noise", place + 1, len(stages)))
    return np.array([record["turned"][str(stage)] for stage in stages]).T


@flushed()
@exact()
@torch.no_grad()
def turned(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    index: Tensor,
    levels: list[int],
    distortions: int,
) -> list[float]:
    """The share of noisy images that are classified otherwise than without noise (%), a number a level (grey levels).

    index: what each image's noise is keyed by.
    """
    shape = tuple(images.shape[1:])
    answers = model(images).argmax(1)
    wrong = [0] * len(levels)
    for draw in range(distortions):
        noise = randomness.normal(shape, randomness.subseed(0, draw), index)
        for place, level in enumerate(levels):
            noisy = (images + level / 255 * noise).clamp_(0, 1)
            wrong[place] += int((model(noisy).argmax(1) != answers).sum())
    return [100 * count / (distortions * len(images)) for count in wrong]


def _at(model: nn.Module, folder: Path, stage: int) -> None:
    Checkpoint.read(folder / FOLDER / step_name(stage)).restore_weights(model)


def claims(table: str, found: dict[str, drawing.Grid]) -> list[Claim]:
    """What the figure and the text around it say, and whether it held."""
    (first, regular), (second, bang) = found.items()
    before, after = PUBLISHED[table]
    level = LEVELS[table][-1]
    below, alike = float((bang < regular).mean()), float((bang == regular).mean())
    late = slice(bang.shape[1] // 2, None)
    return [
        Claim(
            f"At the end of training, noise of standard deviation {level} turns BANG less often",
            bool(bang[-1, -1] < regular[-1, -1]),
            f"{first} {regular[-1, -1]:.1f} %, {second} {bang[-1, -1]:.1f} %",
            f"{first} {before:g} %, {second} {after:g} %",
        ),
        Claim(
            f"There the gain is at least half of the published one ({before - after:.1f} points)",
            bool(regular[-1, -1] - bang[-1, -1] >= (before - after) / 2),
            f"{regular[-1, -1] - bang[-1, -1]:.1f} points",
            f"{before - after:.1f} points",
        ),
        Claim(
            "BANG stays below the regular network throughout training (at 95 % of levels and stages)",
            below >= 0.95,
            f"at {100 * below:.0f} %, alike at {100 * alike:.0f} %; mean difference in the second half of training "
            f"{float((regular - bang)[:, late].mean()):.2f} points",
            "maintains lower rates throughout training",
        ),
    ]


def picture(table: str, stages: list[int], found: dict[str, drawing.Grid], path: Path, title: str) -> None:
    """Three panels: the regular network, BANG, and the difference."""
    (first, regular), (second, bang) = found.items()
    rows = TABLES[table].rows
    highest = float(max(regular.max(), bang.max(), 1e-3))
    gain = regular - bang
    reach = max(float(np.abs(gain).max()), 1e-3)
    levels = list(LEVELS[table])
    panels = (
        (regular, f"{first}: {described(rows[first].setting)}", "magma", (0.0, highest)),
        (bang, f"{second}: {described(rows[second].setting)}", "magma", (0.0, highest)),
        (gain, f"improvement: {first} minus {second} (points)", "RdBu", (-reach, reach)),
    )
    with drawing.sheet(path, 13, 3.7, grid=False) as figure:
        for axes, (values, words, colours, limits) in zip(figure.subplots(1, 3), panels, strict=True):
            drawing.surface(axes, stages, levels, values, colours=colours, limits=limits, points=False)
            axes.set_title(words, fontsize=10)
            axes.set_xlabel("training iteration")
            axes.set_ylabel("standard deviation of the noise (grey levels)")
        figure.suptitle(f"Distortions that change the class (%): {title}", fontsize=10)
