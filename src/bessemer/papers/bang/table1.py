"""Table 1: LeNet on MNIST, trained regularly and with BANG, under FGS and HC1.

So far the rows R0 and B0. The published FGS column is the underflow of the softmax; what the same attack finds on a
loss that does not underflow stands beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bessemer.errors import unknown
from bessemer.evaluation import SUITES, Stage
from bessemer.papers.bang.networks import ROWS, judged, percent, trained
from bessemer.records import Claim, Evaluation, Result, Share, provenance
from bessemer.training import Moment

NETWORKS = ("R0", "B0")

# what changes in the recipes, and how many test images are attacked
SCALES: dict[str, tuple[list[str], int | None]] = {
    "smoke": (["training.iterations=150", "training.validate_every=150"], 50),
    "full": ([], None),
}


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, attack and compare; networks and evaluations that are in `runs` already are not made again.

    watch_training, watch_evaluation: given a network's name, what to call as its training or evaluation goes on.
    Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    changes, samples = SCALES[scale]
    found: dict[str, Evaluation] = {}
    for name in NETWORKS:
        model, dataset = trained(name, changes, runs, data_dir, watch_training(name))
        found[name] = judged(
            model,
            dataset,
            SUITES["bang"](None),
            runs / name,
            samples=samples,
            name=name,
            watch=watch_evaluation(name),
        )
    numbers = {name: {"ours": figures(found[name]), "published": ROWS[name].published} for name in NETWORKS}
    facts = provenance(
        seed=0,
        seconds=round(time.monotonic() - began, 1),
        threads=torch.get_num_threads(),
        evaluations={name: evaluation.provenance for name, evaluation in found.items()},
    )
    return Result("bang-table1", scale, claims(found["R0"], found["B0"]), numbers, facts)


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """A row of the table in the paper's units, with what the paper does not print."""

    def attacked(name: str, prefix: str) -> dict[str, Any]:
        linf = evaluation.produced(name, "linf")
        return {
            f"{prefix}_rate": percent(evaluation.success_rate(name)),
            f"{prefix}_pass": _rounded(evaluation.produced(name, "pass_score"), 4),
            f"{prefix}_linf": _rounded((255 * linf[0], 255 * linf[1]), 2),
        }

    return {
        "accuracy": percent(evaluation.clean_accuracy()),
        **attacked("FGS", "fgs"),
        **attacked("HC1", "hc1"),
        **attacked("FGS, margin loss", "fgs_margin"),
        "zero_gradients": percent(evaluation.zero_gradient_share("FGS")),
        "zero_gradients_in_float64": percent(evaluation.zero_in_float64_share("FGS")),
        "images": len(evaluation),
    }


def claims(regular: Evaluation, bang: Evaluation) -> list[Claim]:
    """What Table 1 and the text around it say of these rows, and whether it held."""
    accuracy = regular.clean_accuracy(), bang.clean_accuracy()
    rate = regular.success_rate("FGS"), bang.success_rate("FGS")
    linf = [255 * evaluation.produced("HC1", "linf")[0] for evaluation in (regular, bang)]
    similarity = [evaluation.produced("HC1", "pass_score")[0] for evaluation in (regular, bang)]
    failed = bang.survivors("FGS")
    blank = Share(int((failed & (bang.attack("FGS")["zero_gradients"] > 0)).sum()), int(failed.sum()))
    turned = Share(int((failed & ~bang.survivors("FGS, margin loss")).sum()), int(failed.sum()))
    return [
        Claim(
            "Both networks reach an accuracy between 99.0 and 99.4 %",
            all(0.990 <= share.value <= 0.994 for share in accuracy),
            f"R0 {accuracy[0]}, B0 {accuracy[1]}",
            "R0 99.16 %, B0 99.16 %",
        ),
        Claim(
            "HC1 must go further against BANG: its mean Linf grows by at least a third",
            linf[1] >= linf[0] * 4 / 3,
            f"R0 {linf[0]:.1f}, B0 {linf[1]:.1f} grey levels",
            "R0 122.6, B0 187.9 grey levels",
        ),
        Claim(
            "HC1 examples of BANG are less similar to their originals (PASS)",
            similarity[1] < similarity[0],
            f"R0 {similarity[0]:.3f}, B0 {similarity[1]:.3f}",
            "R0 0.754, B0 0.536",
        ),
        Claim(
            "FGS nearly always fails against BANG (success rate below 10 %)",
            rate[1].value < 0.10,
            f"R0 {rate[0]}, B0 {rate[1]}",
            "R0 90.33 %, B0 3.51 %",
        ),
        Claim(
            "Almost every failed FGS attempt against BANG met a blank gradient (at least 90 %)",
            blank.total > 0 and blank.value >= 0.9,
            f"{blank} of the failures",
            "almost every single one",
        ),
        Claim(
            "Ours, not the paper's: where FGS fails against BANG, the same search on a loss that cannot underflow "
            "nearly always succeeds (at least 90 %)",
            turned.total > 0 and turned.value >= 0.9,
            f"{turned} of the failures",
        ),
    ]


def _rounded(values: tuple[float, float], digits: int) -> list[float | None]:
    return [None if math.isnan(value) else round(value, digits) for value in values]
