"""Figures 2 and 4: accuracy, FGS rate and PASS of HC1 over a grid of beta and epsilon, LeNet and CIFAR10_quick.

One network a point, all from the same seed, judged after its last iteration, as in the paper; a network whose loss
became infinite leaves its point empty. Beside the three surfaces
of the paper stands a fourth: the same FGS search on the margin loss, which does not underflow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bessemer import data, training
from bessemer.errors import DivergedError, unknown
from bessemer.evaluation import SUITES, Stage
from bessemer.papers.bang import drawing
from bessemer.papers.bang.drawing import Grid
from bessemer.papers.bang.networks import TABLES, rank_correlation
from bessemer.papers.judged import judged
from bessemer.records import Claim, Evaluation, Result, provenance
from bessemer.training import Moment

FIGURES = {"lenet": 2, "cifar-quick": 4}
MEASURES = {
    "accuracy": "accuracy (%)",
    "fgs_rate": "FGS rate (%)",
    "hc1_pass": "HC1 PASS",
    "fgs_margin_rate": "FGS rate on the margin loss (%)",
}


@dataclass(frozen=True)
class Scale:
    """iterations: of training; None for the paper's. every: so many of the paper's steps between points of the grid.

    samples: test images attacked; None for all.
    """

    iterations: int | None
    every: int
    samples: int | None


SCALES = {
    "lenet": {"smoke": Scale(60, 12, 20), "cpu": Scale(2000, 2, 300), "full": Scale(None, 1, None)},
    "cifar-quick": {"smoke": Scale(20, 12, 20), "cpu": Scale(2000, 4, 300), "full": Scale(None, 1, None)},
}


def run(
    table: str,
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train and attack a network a point; what is in `runs` already is not made again.

    table: `lenet` (Figure 2) or `cifar-quick` (Figure 4). A picture is left in `runs`. watch_training,
    watch_evaluation: given a name, what to call as that training or evaluation goes on.
    Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES[table]:
        raise unknown("scale", scale, SCALES[table])
    began = time.monotonic()
    plan, printed = SCALES[table][scale], TABLES[table]
    betas, epsilons = axis(printed.beta, plan.every), axis(printed.epsilon, plan.every)
    settings: list[tuple[float, float] | None] = [None, *((beta, one) for one in epsilons for beta in betas)]
    found: list[dict[str, float]] = []
    for place, setting in enumerate(settings):
        name = "regular" if setting is None else f"beta-{setting[0]:g}-epsilon-{setting[1]:g}"
        recipe = printed.trained_for(setting, plan.iterations)
        folder = runs / f"{table}-grid-{recipe.training.iterations}" / name
        shown = f"{place + 1} of {len(settings)}: {name}"
        try:
            model = training.train(
                recipe, folder, resume=folder.exists(), data_dir=data_dir, watch=watch_training(shown)
            )
        except DivergedError:
            if setting is None:
                raise
            found.append(dict.fromkeys(MEASURES, math.nan))
            continue
        dataset = data.load(recipe.data[0], data_dir, **recipe.data[1])
        watch = watch_evaluation(shown)
        suite = SUITES["bang"](None)
        found.append(figures(judged(model, dataset, suite, folder, samples=plan.samples, watch=watch)))
    regular = found[0]
    surfaces = {
        measure: np.array([one[measure] for one in found[1:]]).reshape(len(epsilons), len(betas))
        for measure in MEASURES
    }
    name = f"bang-figure{FIGURES[table]}"
    title = (
        f"{printed.title}, {plan.iterations or printed.iterations} iterations, "
        f"{'all' if plan.samples is None else plan.samples} test images (scale {scale})"
    )
    picture(betas, epsilons, surfaces, regular, runs / f"{name}-{scale}.png", title)
    numbers = {
        "beta": betas,
        "epsilon": epsilons,
        "regular": regular,
        **{
            measure: [[None if math.isnan(value) else value for value in row] for row in surface.tolist()]
            for measure, surface in surfaces.items()
        },
    }
    facts = provenance(
        seed=0,
        iterations=plan.iterations or printed.iterations,
        images=plan.samples,
        seconds=round(time.monotonic() - began, 1),
        threads=torch.get_num_threads(),
    )
    return Result(name, scale, claims(epsilons, surfaces, regular), numbers, facts)


def axis(ends: tuple[float, float, float], every: int) -> list[float]:
    """The points of an axis of the paper's grid, each or every second, third, … of them; both ends included."""
    first, last, step = ends
    return [round(first + place * step, 4) for place in range(0, round((last - first) / step) + 1, every)]


def figures(evaluation: Evaluation) -> dict[str, float]:
    """What the surfaces show of one network."""
    return {
        "accuracy": round(100 * evaluation.clean_accuracy().value, 2),
        "fgs_rate": round(100 * evaluation.success_rate("FGS").value, 2),
        "hc1_pass": round(evaluation.produced("HC1", "pass_score")[0], 4),
        "fgs_margin_rate": round(100 * evaluation.success_rate("FGS, margin loss").value, 2),
    }


def claims(epsilons: list[float], surfaces: dict[str, Grid], regular: dict[str, float]) -> list[Claim]:
    """What the paper reads off the surfaces, and whether it held for the networks that could be trained."""
    trained = ~np.isnan(surfaces["accuracy"])
    strength = np.repeat(epsilons, surfaces["fgs_rate"].shape[1]).reshape(trained.shape)
    known = {measure: surface[trained] for measure, surface in surfaces.items()}
    falls = rank_correlation(strength[trained].tolist(), known["fgs_rate"].tolist())
    lower = float((known["fgs_rate"] < regular["fgs_rate"]).mean())
    apart = float((known["hc1_pass"] < regular["hc1_pass"]).mean())
    accurate = float((known["accuracy"] >= regular["accuracy"]).mean())
    alike = float((known["fgs_margin_rate"] >= regular["fgs_margin_rate"] - 5).mean())
    points = int(trained.sum())

    def spread(measure: str) -> str:
        low, high = known[measure].min(), known[measure].max()
        return f"{low:.4g} to {high:.4g}, regular {regular[measure]:.4g}"

    return [
        Claim(
            "Every network of the grid can be trained",
            points == trained.size,
            f"the loss of {trained.size - points} of {trained.size} networks became infinite",
            "the figure has no gaps",
        ),
        Claim(
            "The larger epsilon, the more resistant to FGS (rank correlation with its rate below -0.5)",
            falls < -0.5,
            f"rank correlation {falls:.2f} over {points} networks",
            "'as we increase epsilon …, the resultant classifiers become more resistant'",
        ),
        Claim(
            "FGS succeeds less often than against the regular network at every point",
            lower == 1,
            f"at {100 * lower:.0f} % of the points; {spread('fgs_rate')} %",
            "at every point of the figure",
        ),
        Claim(
            "HC1's examples are less similar to their originals than the regular network's at every point",
            apart == 1,
            f"at {100 * apart:.0f} % of the points; {spread('hc1_pass')}",
            "at every point of the figure",
        ),
        Claim(
            "Some settings keep or enhance accuracy",
            accurate > 0,
            f"{100 * accurate:.0f} % of the points; {spread('accuracy')} %",
            "'BANG can yield improved classification performance'",
        ),
        Claim(
            "Ours, not the paper's: on a loss that cannot underflow FGS succeeds as often as against the regular "
            "network, within 5 points, at every point",
            alike == 1,
            f"at {100 * alike:.0f} % of the points; {spread('fgs_margin_rate')} %",
        ),
    ]


def picture(
    betas: list[float],
    epsilons: list[float],
    surfaces: dict[str, Grid],
    regular: dict[str, float],
    path: Path,
    title: str,
) -> None:
    """The surfaces, each with the level of regular training as a green line."""
    with drawing.sheet(path, 15, 3.9, grid=False) as figure:
        for axes, (measure, words) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
            drawing.surface(axes, betas, epsilons, surfaces[measure], level=regular[measure])
            axes.set_title(f"{words}\nregular training: {regular[measure]:.4g}", fontsize=10)
            axes.set_xlabel("beta")
            axes.set_ylabel("epsilon")
        figure.suptitle(f"{title}; dots: networks trained; green: the level of regular training", fontsize=10)
