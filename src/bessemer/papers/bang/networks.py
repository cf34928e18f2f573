"""Networks of BANG's Table 1: how each is trained, what the paper prints for it, and what is kept of it on disk.

A network is trained once, and a question about it is asked once: what is in its folder already is read, and what was
stopped goes on where it was.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bessemer import data, training
from bessemer.data import Dataset
from bessemer.evaluation import Stage, Suite, evaluate
from bessemer.records import Evaluation, Share, file_name
from bessemer.training import Moment, Recipe


@dataclass(frozen=True)
class Row:
    """A network of the table, and the figures the paper prints for it (rates in %, Linf in grey levels)."""

    recipe: str
    published: dict[str, float | tuple[float, float]]


ROWS = {
    "R0": Row(
        "lenet-mnist",
        {
            "accuracy": 99.16,
            "fgs_rate": 90.33,
            "fgs_pass": (0.4072, 0.1081),
            "fgs_linf": (40.51, 15.72),
            "hc1_rate": 99.53,
            "hc1_pass": (0.7535, 0.1143),
            "hc1_linf": (122.60, 49.46),
        },
    ),
    "B0": Row(
        "bang-lenet-mnist",
        {
            "accuracy": 99.16,
            "fgs_rate": 3.51,
            "fgs_pass": (0.6806, 0.1457),
            "fgs_linf": (8.34, 4.32),
            "hc1_rate": 95.13,
            "hc1_pass": (0.5359, 0.2023),
            "hc1_linf": (187.86, 63.66),
        },
    ),
    "B4": Row(
        "bang-b4-lenet-mnist",
        {
            "accuracy": 99.11,
            "fgs_rate": 1.52,
            "fgs_pass": (0.8220, 0.1310),
            "fgs_linf": (4.19, 3.01),
            "hc1_rate": 97.68,
            "hc1_pass": (0.4669, 0.1881),
            "hc1_linf": (203.50, 58.97),
        },
    ),
}


def trained(
    name: str, changes: list[str], runs: Path, data_dir: Path | None, watch: Callable[[Moment], None]
) -> tuple[nn.Module, Dataset]:
    """The network of that row, with changes in its recipe, trained into `runs`; and the data it learned from."""
    recipe = Recipe.named(ROWS[name].recipe, changes)
    folder = runs / name
    model = training.train(recipe, folder, resume=folder.exists(), data_dir=data_dir, watch=watch)
    return model, data.load(recipe.data[0], data_dir, **recipe.data[1])


def judged(
    model: nn.Module,
    dataset: Dataset,
    suite: Suite,
    folder: Path,
    *,
    samples: int | None,
    name: str,
    watch: Callable[[Stage], None],
) -> Evaluation:
    """What a suite finds on the first `samples` test images (all of them: None), kept in the run's `records`."""
    images = min(samples or len(dataset.test), len(dataset.test))
    threats = (getattr(attack, "threat", None) for attack in suite.attacks.values())
    threat = next((str(threat) for threat in threats if threat is not None), "")
    stem = file_name(suite.name, threat, dataset.name, images)
    path = folder / "records" / f"{stem}.json"
    if not path.exists():
        journal = path.parent / f"{stem}.partial"
        evaluate(model, dataset, suite, samples=samples, name=name, resume=journal, watch=watch).save(path.parent)
        shutil.rmtree(journal)
    return Evaluation.read(path)


def percent(share: Share) -> float | None:
    """A share in %, for a result's numbers; None of nothing."""
    return None if math.isnan(share.value) else round(100 * share.value, 2)
