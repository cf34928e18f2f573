"""Figure of perturbations: how a clean and an adversarially trained network are attacked, on the same images.

Published is a picture: perturbations of clean networks look like coloured noise, those of adversarially trained ones
like parts of objects on grey (Microsoft's account of the paper, figure 5). The same attack, of the same size, is used
against all networks here, and each half of that sentence is asked as a number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bessemer.attacks import PGD
from bessemer.errors import unknown
from bessemer.evaluation import Stage
from bessemer.papers.feature_purification import networks
from bessemer.papers.feature_purification.compared import CLEAN, OTHER, ROBUST, caption, opened
from bessemer.papers.feature_purification.pairs import larger, mean, mostly
from bessemer.purification import grids
from bessemer.purification.perturbations import cosine, learned_basis, measured, noise_like, perturbations
from bessemer.records import Claim, Result, provenance
from bessemer.threat import parse
from bessemer.training import Moment

NAME = "purification-perturbations"
NOISE = "random noise"
ATTACKED_AT = "l2-0.5"  # the ball of the attack, on all networks: L2, 0.5 on CIFAR-10
SHOWN = 16


@dataclass(frozen=True)
class Scale:
    """Which architectures, how many test images, the attack's steps, and from how many images a basis is learned."""

    architectures: tuple[str, ...]
    images: int
    steps: int
    learned_from: int


SCALES = {
    "smoke": Scale(("lenet",), 32, 10, 100),
    "cpu": Scale(("alexnet", "resnet"), 200, 50, 2000),
    "full": Scale(("alexnet", "resnet"), 1000, 50, 10_000),
}


@dataclass(frozen=True)
class Seen:
    """The perturbations of each network of one architecture, and each measure of them, image by image."""

    images: Tensor
    drawn: dict[str, Tensor]
    measures: dict[str, dict[str, Tensor]]

    def alike(self, one: str, other: str) -> Tensor:
        """The cosine of two networks' perturbations, image by image."""
        return cosine(self.drawn[one], self.drawn[other])


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, attack and compare; networks that are in `runs` already are not trained again.

    A picture an architecture is left in `runs`, as `purification-perturbations-SCALE-ARCHITECTURE.png`. watch_training,
    watch_evaluation: given a name, what to call as that training or attack goes on. Raises `UsageError` for an unknown
    scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    found: dict[str, Seen] = {}
    for architecture in SCALES[scale].architectures:
        found[architecture] = _seen(architecture, scale, runs, data_dir, watch_training, watch_evaluation)
        picture(found[architecture], architecture, runs / f"{NAME}-{scale}-{architecture}.png")
    facts = provenance(seed=0, seconds=round(time.monotonic() - began, 1), threads=torch.get_num_threads())
    numbers = {architecture: figures(seen) for architecture, seen in found.items()}
    return Result(NAME, scale, claims(found), numbers, facts)


def _seen(
    architecture: str,
    scale: str,
    runs: Path,
    data_dir: Path | None,
    watch_training: Callable[[str], Callable[[Moment], None]],
    watch_evaluation: Callable[[str], Callable[[Stage], None]],
) -> Seen:
    plan = SCALES[scale]
    models, dataset = opened(architecture, (CLEAN, OTHER, *ROBUST), scale, runs, data_dir, watch_training)
    images, labels = dataset.test.at(slice(0, plan.images))
    basis = learned_basis(dataset.train.at(slice(0, plan.learned_from))[0])
    attack = PGD(parse(networks.threat(architecture, ATTACKED_AT)), steps=plan.steps)
    watch = watch_evaluation(f"perturbations of {architecture}")
    drawn: dict[str, Tensor] = {}
    for place, (which, model) in enumerate(models.items()):
        watch(Stage(which, place, len(models)))
        drawn[which] = perturbations(model, images, labels, attack)
    watch(Stage("", len(models), len(models)))
    drawn[NOISE] = noise_like(drawn[CLEAN])
    return Seen(images, drawn, {which: measured(these, images, basis) for which, these in drawn.items()})


def figures(seen: Seen) -> dict[str, Any]:
    """The numbers of an architecture: means over the images, of each measure and of the cosines between networks."""
    others = [(CLEAN, which) for which in (*ROBUST, OTHER, NOISE)] + [ROBUST]
    return {
        "images": len(seen.images),
        **{
            which: {name: mean(values) for name, values in measures.items()}
            for which, measures in seen.measures.items()
        },
        "cosine": {f"{one}, {other}": mean(seen.alike(one, other)) for one, other in others},
    }


def claims(found: dict[str, Seen]) -> list[Claim]:
    """What the picture says, in numbers, and whether it held: for every architecture and both robust networks."""

    def claim(text: str, measure: str, falls: bool, published: str = "") -> Claim:
        """That a measure falls, or rises, from the clean network to each robust one, more often than not."""
        shares = [
            larger(seen.measures[CLEAN if falls else which][measure], seen.measures[which if falls else CLEAN][measure])
            for seen in found.values()
            for which in ROBUST
        ]
        means = "; ".join(
            f"{name}: "
            + ", ".join(f"{which} {mean(seen.measures[which][measure])}" for which in (CLEAN, *ROBUST, NOISE))
            for name, seen in found.items()
        )
        told = ", ".join(str(share) for share in shares)
        return Claim(text, all(mostly(share) for share in shares), f"{means}; for {told} of the images", published)

    noise, objects = "a picture: coloured noise", "a picture: object-shaped, on grey"
    coloured = all("colour" in seen.measures[CLEAN] for seen in found.values())
    own, another = "on the image's edges", "on another image's edges"
    return [
        claim(
            "Noise: more of a clean network's perturbation lies in high frequencies", "high frequencies", True, noise
        ),
        *(
            [claim("Coloured: more of a clean network's perturbation is colour, not grey", "colour", True, noise)]
            if coloured
            else []
        ),
        *(
            claim(
                f"Dense: a clean network's perturbation is less sparse (Hoyer) in {where}",
                f"Hoyer sparsity, {basis}",
                False,
                published,
            )
            for basis, where, published in (
                ("pixels", "pixels", objects),
                ("DCT", "the cosine basis", ""),
                ("learned", "a basis learned from images", ""),
            )
        ),
        Claim(
            "Object-shaped: an adversarially trained network's perturbation is larger on its own image's edges than on "
            "another's",
            all(
                mostly(larger(seen.measures[which][own], seen.measures[which][another]))
                for seen in found.values()
                for which in ROBUST
            ),
            "; ".join(
                f"{name}: "
                + ", ".join(
                    f"{which} {mean(seen.measures[which][own])} on its own, {mean(seen.measures[which][another])}"
                    for which in (CLEAN, *ROBUST)
                )
                for name, seen in found.items()
            ),
            objects,
        ),
        Claim(
            "What is attacked before and after has something in common: the perturbations of one image point the same "
            "way more than noise does",
            all(
                mostly(larger(seen.alike(CLEAN, which), seen.alike(CLEAN, NOISE)))
                for seen in found.values()
                for which in ROBUST
            ),
            "; ".join(
                f"{name}: "
                + ", ".join(f"{which} {mean(seen.alike(CLEAN, which))}" for which in (*ROBUST, OTHER, NOISE))
                for name, seen in found.items()
            )
            + " (cosine with the clean network's)",
        ),
    ]


def picture(seen: Seen, architecture: str, path: Path) -> None:
    """The images, and below each its perturbations, about mid-grey; each so strong that 99 % of it is not cut off."""
    shown = (CLEAN, *ROBUST, NOISE)
    drawn = [[grids.centred(seen.drawn[which][:SHOWN], within=0.99)] for which in shown]
    rows = [caption(architecture, which).replace("trained, ", "trained,\n") for which in shown]
    grids.sheet(path, [[seen.images[:SHOWN]], *drawn], ["image", *rows], [""], across=SHOWN)
