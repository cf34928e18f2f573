"""Figure of features before and after: what neurons of a network look for, and what adversarial training makes of it.

Published is a picture: in Microsoft's account of the paper (figure 6) "horse + mixture" becomes "pure horse", neuron by
neuron. Beside the picture stand two numbers that could refute it. Purer: the image of a neuron has less energy in high
frequencies, where a mixture shows, and fewer cosines make it up. The same: of all images of the trained network's
neurons, a neuron's own excites that neuron of the clean network most; in a clean network from another seed, whose
neurons have nothing to do with these, it should not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bessemer.errors import unknown
from bessemer.evaluation import Stage
from bessemer.papers.feature_purification.compared import CLEAN, OTHER, ROBUST, caption, opened
from bessemer.papers.feature_purification.pairs import larger, mean, mostly
from bessemer.purification import grids, perturbations
from bessemer.purification.features import Regularise, maximise, responses
from bessemer.records import Claim, Result, Share, provenance
from bessemer.training import Moment

NAME = "purification-features"
SHOWN = 32


@dataclass(frozen=True)
class Scale:
    """Whose neurons: so many, the first, of each layer (before its ReLU); and how long their images climb."""

    architecture: str
    layers: dict[str, int]
    steps: int


SCALES = {
    "smoke": Scale("lenet", {"conv2": 8, "ip1": 8}, 40),
    "cpu": Scale("resnet", {"stages.1.0.conv2": 32, "stages.2.0.conv2": 64, "fc": 10}, 256),
    # the 31st convolution of a ResNet-34, and one before it
    "full": Scale("resnet", {"stages.2.5.conv2": 256, "stages.3.1.conv2": 512, "fc": 10}, 256),
}


@dataclass(frozen=True)
class Seen:
    """One layer's images, by network, and how strongly those of a robust one excite the clean one and an unrelated one.

    own, unrelated: by robust network, (images, neurons): the response of neuron j to the image of neuron i.
    """

    images: dict[str, Tensor]
    regularised: dict[str, Tensor]
    own: dict[str, Tensor]
    unrelated: dict[str, Tensor]


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, climb and compare; networks that are in `runs` already are not trained again.

    Two pictures are left in `runs`: `purification-features-SCALE.png`, and `…-regularised.png` with blur and jitter.
    watch_training, watch_evaluation: given a name, what to call as that training, or making of images, goes on. Raises
    `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    plan = SCALES[scale]
    models, _ = opened(plan.architecture, (CLEAN, OTHER, *ROBUST), scale, runs, data_dir, watch_training)
    watch = watch_evaluation(f"features of {plan.architecture}")
    found: dict[str, Seen] = {}
    for place, layer in enumerate(plan.layers):
        watch(Stage(layer, place, len(plan.layers)))
        found[layer] = _seen(models, layer, range(plan.layers[layer]), plan.steps)
    watch(Stage("", len(plan.layers), len(plan.layers)))
    for ending, images in (
        ("", {layer: seen.images for layer, seen in found.items()}),
        ("-regularised", {layer: seen.regularised for layer, seen in found.items()}),
    ):
        picture(images, plan.architecture, runs / f"{NAME}-{scale}{ending}.png")
    facts = provenance(seed=0, seconds=round(time.monotonic() - began, 1), threads=torch.get_num_threads())
    numbers = {layer: figures(seen) for layer, seen in found.items()}
    return Result(NAME, scale, claims(found), numbers, facts)


def _seen(models: dict[str, nn.Module], layer: str, units: range, steps: int) -> Seen:
    """Every network starts from the same images: they are keyed by seed and neuron."""
    shown = (CLEAN, *ROBUST)
    images = {which: maximise(models[which], layer, units, steps=steps) for which in shown}
    regularised = {
        which: maximise(models[which], layer, units, steps=steps, regularise=Regularise()) for which in shown
    }
    return Seen(
        images,
        regularised,
        {which: responses(models[CLEAN], layer, images[which])[:, : len(units)] for which in ROBUST},
        {which: responses(models[OTHER], layer, images[which])[:, : len(units)] for which in ROBUST},
    )


def high(images: Tensor) -> Tensor:
    """The share of the energy of each image, about mid-grey, in high frequencies."""
    return perturbations.high_frequencies(images - 0.5)


def sparsity(images: Tensor) -> Tensor:
    """Hoyer's sparsity of each image, about mid-grey, in the cosine basis."""
    return perturbations.hoyer(perturbations.dct(images - 0.5))


def recognised(excited: Tensor) -> Share:
    """The neurons that no other neuron's image excites as much as their own. excited: (images, neurons)."""
    own = excited.argmax(0) == torch.arange(excited.shape[1], device=excited.device)
    return Share(int(own.sum()), len(own))


def figures(seen: Seen) -> dict[str, Any]:
    """The numbers of a layer: means over its neurons, and shares of them."""
    return {
        "neurons": len(seen.images[CLEAN]),
        **{
            which: {
                "high frequencies": mean(high(images)),
                "Hoyer sparsity, DCT": mean(sparsity(images)),
                "cosine with the clean image": mean(perturbations.cosine(images - 0.5, seen.images[CLEAN] - 0.5)),
                "high frequencies, regularised": mean(high(seen.regularised[which])),
            }
            for which, images in seen.images.items()
        },
        "recognised by the clean network": {which: str(recognised(excited)) for which, excited in seen.own.items()},
        "recognised by an unrelated one": {
            which: str(recognised(excited)) for which, excited in seen.unrelated.items()
        },
    }


def claims(found: dict[str, Seen]) -> list[Claim]:
    """What the picture says, in numbers, and whether it held: in every layer, for both robust networks.

    Layers of few neurons (the logits) are shown, but too few to decide a claim by.
    """
    counted = {layer: seen for layer, seen in found.items() if len(seen.images[CLEAN]) > 10} or found

    def each(value: Callable[[Seen, str], object]) -> str:
        return "; ".join(
            f"{layer}: " + ", ".join(f"{which} {value(seen, which)}" for which in ROBUST)
            for layer, seen in counted.items()
        )

    def everywhere(holds: Callable[[Seen, str], bool]) -> bool:
        return all(holds(seen, which) for seen in counted.values() for which in ROBUST)

    def smoother(seen: Seen, which: str) -> Share:
        return larger(high(seen.images[CLEAN]), high(seen.images[which]))

    def sparser(seen: Seen, which: str) -> Share:
        return larger(sparsity(seen.images[which]), sparsity(seen.images[CLEAN]))

    return [
        Claim(
            "Purer: after adversarial training less of a neuron's image lies in high frequencies",
            everywhere(lambda seen, which: mostly(smoother(seen, which))),
            each(
                lambda seen, which: (
                    f"{mean(high(seen.images[CLEAN]))} → {mean(high(seen.images[which]))}, "
                    f"less for {smoother(seen, which)}"
                )
            ),
            "a picture: “horse + mixture” becomes “pure horse”",
        ),
        Claim(
            "Purer: after adversarial training a neuron's image is sparser in the cosine basis (Hoyer)",
            everywhere(lambda seen, which: mostly(sparser(seen, which))),
            each(
                lambda seen, which: (
                    f"{mean(sparsity(seen.images[CLEAN]))} → {mean(sparsity(seen.images[which]))}, "
                    f"more for {sparser(seen, which)}"
                )
            ),
        ),
        Claim(
            "The same: at least half of the clean network's neurons are excited most by their own image from the "
            "adversarially trained one",
            everywhere(lambda seen, which: recognised(seen.own[which]).value >= 0.5),
            each(lambda seen, which: recognised(seen.own[which])),
            "a picture: each neuron's image is recognised after training",
        ),
        Claim(
            "And not by chance: of an unrelated clean network's neurons at most a tenth are",
            everywhere(lambda seen, which: recognised(seen.unrelated[which]).value <= 0.1),
            each(lambda seen, which: recognised(seen.unrelated[which])),
        ),
    ]


def picture(images: dict[str, dict[str, Tensor]], architecture: str, path: Path) -> None:
    """A row of blocks a layer, a block a network, the same neurons at the same places in each."""
    blocks = [[those[:SHOWN] for those in layer.values()] for layer in images.values()]
    columns = [caption(architecture, which) for which in (CLEAN, *ROBUST)]
    grids.sheet(path, blocks, list(images), columns, across=8)
