"""Figure of sparse reconstructions: images written with few of a first layer's features, at five sparsities.

Published is a picture: CIFAR-10 images from first-layer features of AlexNet, average sparsities 4.05, 2.89, 1.90, 1.10
and 0.44 % (Microsoft's account of the paper, figure 4), which says that images have the sparse code of the model. Here
all shifts of the filters of a clean network, of what adversarial training makes of it, and random filters write the
same images at the same sparsities, and what is left out is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bessemer.errors import unknown
from bessemer.evaluation import Stage
from bessemer.papers.feature_purification.compared import CLEAN, ROBUST, caption, opened
from bessemer.papers.feature_purification.pairs import larger, mean, mostly
from bessemer.purification import grids
from bessemer.purification.filters import filters
from bessemer.purification.reconstruction import LEVELS, Reconstruction, random_filters, reconstruct
from bessemer.records import Claim, Result, Share, provenance
from bessemer.training import Moment

NAME = "purification-reconstruction"
RANDOM = "random filters"
SHOWN = 6


@dataclass(frozen=True)
class Scale:
    """Whose filters, how many test images they write, and how often a solver may step at each penalty."""

    architecture: str
    images: int
    steps: int


SCALES = {
    "smoke": Scale("lenet", 6, 100),
    "cpu": Scale("alexnet", 24, 300),
    "full": Scale("alexnet", 256, 1000),
}

Found = dict[str, list[Reconstruction]]


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, reconstruct and compare; networks that are in `runs` already are not trained again.

    Two pictures are left in `runs`: `purification-reconstruction-SCALE.png`, and `…-filters.png`. watch_training,
    watch_evaluation: given a name, what to call as that training, or the reconstruction, goes on. Raises `UsageError`
    for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    plan = SCALES[scale]
    models, dataset = opened(plan.architecture, (CLEAN, *ROBUST), scale, runs, data_dir, watch_training)
    used = {which: filters(model) for which, model in models.items()}
    used[RANDOM] = random_filters(used[CLEAN])
    images, _ = dataset.test.at(slice(0, plan.images))
    watch = watch_evaluation("sparse reconstruction")
    found: Found = {}
    for place, (which, those) in enumerate(used.items()):
        watch(Stage(which, place, len(used)))
        found[which] = reconstruct(images, those, steps=plan.steps)
    watch(Stage("", len(used), len(used)))
    columns = [caption(plan.architecture, which) for which in used]
    picture(images, found, columns, runs / f"{NAME}-{scale}.png")
    grids.sheet(
        runs / f"{NAME}-{scale}-filters.png",
        [[grids.centred(those) for those in used.values()]],
        [""],
        columns,
        across=6,
    )
    facts = provenance(seed=0, seconds=round(time.monotonic() - began, 1), threads=torch.get_num_threads())
    numbers = {
        "images": len(images),
        "numbers in an image": images[0].numel(),
        **{which: figures(levels, used[which]) for which, levels in found.items()},
    }
    return Result(NAME, scale, claims(found), numbers, facts)


def figures(levels: list[Reconstruction], used: Tensor) -> dict[str, Any]:
    """What was reached at each level: shares in %, errors as means over the images."""
    return {
        "filters": list(used.shape),
        "levels": [
            {
                "asked": round(100 * one.asked, 2),
                "share": round(100 * one.share, 3),
                "error": mean(one.errors),
                "penalty": float(f"{one.penalty:.4g}"),
                "gap": float(f"{one.gap:.2g}"),
            }
            for one in levels
        ],
    }


def claims(found: Found) -> list[Claim]:
    """What the picture says, in numbers, and whether it held."""

    def errors(which: str) -> str:
        return f"{which} " + " / ".join(f"{100 * mean(one.errors):.1f}" for one in found[which]) + " %"

    def better(one: str, other: str) -> list[Share]:
        """At each level, the images that the first leaves less of."""
        return [larger(b.errors, a.errors) for a, b in zip(found[one], found[other], strict=True)]

    def counts(shares: list[Share]) -> str:
        return ", ".join(str(share) for share in shares)

    clean = found[CLEAN]
    return [
        Claim(
            "The five average sparsities are reached, within a fiftieth, by the clean network's filters",
            all(one.reached for one in clean),
            " / ".join(f"{100 * one.share:.2f}" for one in clean) + " %",
            "4.05 / 2.89 / 1.90 / 1.10 / 0.44 %",
        ),
        Claim(
            "Images have a sparse code: at 4.05 % less than a tenth of them is left out (squared error about the mean "
            "colour)",
            mean(clean[0].errors) < 0.1,
            errors(CLEAN),
            "a picture: hardly to be told from the original",
        ),
        Claim(
            "It is the features and not their number: the clean network's filters leave out less than random ones, at "
            "every level",
            all(mostly(share) for share in better(CLEAN, RANDOM)),
            f"{errors(CLEAN)}, {errors(RANDOM)}; less for {counts(better(CLEAN, RANDOM))}",
        ),
        *(
            Claim(
                f"Ours, not the paper's: the filters of {which} leave out less than the clean network's, "
                "at every level",
                all(mostly(share) for share in better(which, CLEAN)),
                f"{errors(which)}, {errors(CLEAN)}; less for {counts(better(which, CLEAN))}",
            )
            for which in ROBUST
        ),
    ]


def picture(images: Tensor, found: Found, columns: list[str], path: Path) -> None:
    """The images, and below them what each set of filters makes of them, from many features to few."""
    rows = ["image", *(f"{100 * level:.2f} %" for level in LEVELS)]
    written = [[images[:SHOWN], *(one.images[:SHOWN] for one in levels)] for levels in found.values()]
    grids.sheet(path, [list(row) for row in zip(*written, strict=True)], rows, columns, across=SHOWN)
