"""Figure 1: test images with the smallest hot/cold perturbation that turns each, regular training above BANG.

The paper does not say which of its networks it drew; here they are those whose course it follows in Figures 3 and 5.
Drawn is the first test image of each class that both networks classify correctly; the claims are about all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bessemer.arithmetic import exact, flushed
from bessemer.attacks import HotCold
from bessemer.errors import unknown
from bessemer.evaluation import SUITES, Stage
from bessemer.papers.bang import drawing
from bessemer.papers.bang.networks import TABLES, described, trained
from bessemer.papers.judged import judged
from bessemer.records import Claim, Evaluation, Result, Share, provenance
from bessemer.training import Moment

HC1 = "HC1"


@dataclass(frozen=True)
class Scale:
    """iterations: of training, by table; None for the paper's. samples: test images attacked; None for all."""

    iterations: dict[str, int | None]
    samples: int | None


SCALES = {
    "smoke": Scale({"lenet": 150, "cifar-quick": 30}, 20),
    "cpu": Scale({"lenet": None, "cifar-quick": 4000}, 1000),
    "full": Scale({"lenet": None, "cifar-quick": None}, None),
}


@dataclass(frozen=True)
class Drawn:
    """Images (n, c, h, w) and what became of them: as they are, then under each network's attack."""

    rows: dict[str, Tensor]
    farthest: dict[str, list[int | None]]  # Linf in grey levels; None where nothing was found


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train and attack; networks and evaluations that are in `runs` already are not made again.

    A picture is left in `runs`. watch_training, watch_evaluation: given a name, what to call as that training or
    evaluation goes on. Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    plan = SCALES[scale]
    found: dict[str, list[Evaluation]] = {}
    drawn: dict[str, Drawn] = {}
    for table, printed in TABLES.items():
        models, evaluations = [], []
        for name in printed.evolving:
            shown = f"{printed.title}, {name}"
            model, dataset, folder = trained(table, name, runs, data_dir, watch_training(shown), plan.iterations[table])
            watch = watch_evaluation(shown)
            suite = SUITES["bang"](None)
            evaluations.append(judged(model, dataset, suite, folder, samples=plan.samples, watch=watch))
            models.append(model)
        found[table] = evaluations
        places = _first_of_each_class(evaluations)
        images, labels = dataset.test.at(torch.tensor(places))
        rows = {"test images": images}
        farthest: dict[str, list[int | None]] = {}
        for name, model in zip(printed.evolving, models, strict=True):
            words = f"{name}: {described(printed.rows[name].setting)}"
            turned = attacked(model, images, labels)
            rows[words] = turned
            # an image that nothing was found for comes back as it was
            farthest[words] = [round(255 * float(one)) or None for one in (turned - images).abs().flatten(1).amax(1)]
        drawn[table] = Drawn(rows, farthest)
    picture(drawn, runs / f"bang-figure1-{scale}.png", f"scale {scale}")
    numbers = {
        TABLES[table].title: {
            name: {
                "mean_linf": round(255 * evaluation.produced(HC1, "linf")[0], 2),
                "mean_pass": round(evaluation.produced(HC1, "pass_score")[0], 4),
                "images": len(evaluation),
                "drawn_linf": drawn[table].farthest[words],
            }
            for name, evaluation, words in zip(TABLES[table].evolving, evaluations, drawn[table].farthest, strict=True)
        }
        for table, evaluations in found.items()
    }
    facts = provenance(seed=0, seconds=round(time.monotonic() - began, 1), threads=torch.get_num_threads())
    return Result("bang-figure1", scale, claims(found), numbers, facts)


@flushed()
@exact()
def attacked(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The smallest perturbed images of HC1; the image itself where nothing was found."""
    return HotCold()(model, images, labels)


def _first_of_each_class(evaluations: list[Evaluation]) -> list[int]:
    """The first image of each class that all get right, or, where there is none, the first of the class."""
    right = np.logical_and.reduce([one.right for one in evaluations])
    label = evaluations[0].label
    found = []
    for one in np.unique(label):
        places = np.flatnonzero(label == one)
        steady = places[right[places]]
        found.append(int((steady if len(steady) else places)[0]))
    return found


def farther(regular: Evaluation, bang: Evaluation) -> Share:
    """Of the images that both networks get right and HC1 turns for both, those it must change more for BANG (Linf)."""
    both = regular.right & bang.right & ~regular.survivors(HC1) & ~bang.survivors(HC1)
    first, second = (one.attack(HC1)["linf"][both] for one in (regular, bang))
    return Share(int((second > first).sum()), int(both.sum()))


def claims(found: dict[str, list[Evaluation]]) -> list[Claim]:
    """The figure's caption as questions with numbers, and whether it held."""
    made = []
    for table, (regular, bang) in found.items():
        share = farther(regular, bang)
        linf = [255 * one.produced(HC1, "linf")[0] for one in (regular, bang)]
        names = TABLES[table].evolving
        printed = [TABLES[table].rows[name].published["hc1_linf"] for name in names]
        made.append(
            Claim(
                f"{TABLES[table].title}: HC1 has to change most images more for BANG (at least two thirds of them)",
                share.total > 0 and share.value >= 2 / 3,
                f"{share}; mean Linf {names[0]} {linf[0]:.1f}, {names[1]} {linf[1]:.1f} grey levels",
                ", ".join(
                    f"{name} {one[0]:g}"  # type: ignore[index]
                    for name, one in zip(names, printed, strict=True)
                )
                + " (tables)",
            )
        )
    return made


def picture(drawn: dict[str, Drawn], path: Path, title: str) -> None:
    """Per data set a row of test images and a row a network, with Linf in grey levels above each perturbed image."""
    height = sum(len(one.rows) for one in drawn.values())
    columns = max(len(next(iter(one.rows.values()))) for one in drawn.values())
    with drawing.sheet(path, 1.05 * columns + 1.6, 1.28 * height + 0.5, grid=False) as figure:
        panels = figure.subplots(height, columns, squeeze=False)
        lines = ((one, words, images) for one in drawn.values() for words, images in one.rows.items())
        for line, (one, words, images) in zip(panels, lines, strict=True):
            for place, axes in enumerate(line):
                axes.set_axis_off()
                if place >= len(images):
                    continue
                axes.imshow(images[place].permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
                if words in one.farthest:
                    axes.set_title(f"{one.farthest[words][place] or 'none'}", fontsize=8, pad=2)
            line[0].text(
                -0.15,
                0.5,
                words.replace(": ", "\n").replace(" at ", "\n"),
                transform=line[0].transAxes,
                ha="right",
                va="center",
                fontsize=9,
            )
        figure.suptitle(
            f"The smallest perturbation of HC1 that turns the answer; numbers: its Linf in grey levels ({title})",
            fontsize=10,
        )
