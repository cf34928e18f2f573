"""Beyond the paper: the questions that BANG's authors leave to future work, and the one its gradients raise.

1. Does a rule that sets epsilon and beta by itself do better than fixed ones?
2. What should misclassified samples count?
3. Does BANG help a residual network? Does it help together with adversarial training?
4. Does it keep whatever it gains where logits are kept small, so that no gradient underflows?

Every network is trained from several seeds and judged by attacks that do not depend on BANG's hidden gradients: the
ensemble `standard`, and how far the nearest wrong answer lies. A variant is called better only where the 95 % interval
of the difference to its reference, paired over the seeds, lies above zero. All of this is ours.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bessemer import data, training
from bessemer.attacks import FGSLine
from bessemer.errors import unknown
from bessemer.evaluation import SUITES, Stage, Suite
from bessemer.papers.bang import drawing
from bessemer.papers.judged import judged
from bessemer.papers.seeds import spread
from bessemer.records import Claim, Evaluation, Result, Share, provenance
from bessemer.threat import Linf
from bessemer.training import Moment, Recipe

REGULAR = "regular"
FARTHEST = math.sqrt(3 * 32 * 32)  # between two images in L2; for those that no attack turns
RADII = {"plain": Linf(2 / 255), "adversarial": Linf(8 / 255)}  # where something is left to be compared


@dataclass(frozen=True)
class Variant:
    """One way to train. recipe, changes: how. reference: what it is compared with. radius: where it is judged."""

    recipe: str
    changes: tuple[str, ...] = ()
    reference: str = REGULAR
    radius: str = "plain"


BANG = "bang-cifar-quick"
SMOOTH, COLD, PENALTY = "label_smoothing=0.1", "temperature=0.2", "logit_penalty=0.01"
VARIANTS = {
    REGULAR: Variant("cifar-quick"),
    "BANG": Variant(BANG),
    "BANG, adaptive": Variant("bang-adaptive-cifar-quick", reference="BANG"),
    "BANG, misclassified 0": Variant(BANG, ("method.misclassified=0.0",), "BANG"),
    "BANG, misclassified 1": Variant(BANG, ("method.misclassified=1.0",), "BANG"),
    "regular, smoothed labels": Variant("cifar-quick", ("method.name=plain", f"method.{SMOOTH}")),
    "BANG, smoothed labels": Variant(
        BANG, ("method.inside.name=plain", f"method.inside.{SMOOTH}"), "regular, smoothed labels"
    ),
    "regular, temperature 0.2": Variant("cifar-quick", ("method.name=plain", f"method.{COLD}")),
    "BANG, temperature 0.2": Variant(
        BANG, ("method.inside.name=plain", f"method.inside.{COLD}"), "regular, temperature 0.2"
    ),
    "regular, logit penalty": Variant("cifar-quick", ("method.name=plain", f"method.{PENALTY}")),
    "BANG, logit penalty": Variant(
        BANG, ("method.inside.name=plain", f"method.inside.{PENALTY}"), "regular, logit penalty"
    ),
    "ResNet": Variant("resnet-cifar"),
    "ResNet, BANG": Variant("bang-resnet-cifar", reference="ResNet"),
    "adversarial": Variant("adversarial-cifar-quick", radius="adversarial"),
    "adversarial, BANG": Variant("bang-adversarial-cifar-quick", reference="adversarial", radius="adversarial"),
}


@dataclass(frozen=True)
class Scale:
    """What changes in every recipe; the seeds; test images for `standard`, for the rest; which variants (None: all).

    suite: what judges, and whether it does so fast, searching in bfloat16 and confirming in float32.
    """

    iterations: int
    changes: tuple[str, ...]
    seeds: tuple[int, ...]
    costly: int
    samples: int
    variants: tuple[str, ...] | None = None
    suite: str = "standard"
    fast: bool = False


SCALES = {
    "smoke": Scale(20, (), (0, 1), 4, 8, (REGULAR, "BANG"), "quick"),
    # ten epochs of 10,000 images
    "cpu": Scale(1000, ("data.validation=40000",), (0, 1, 2), 100, 1000, fast=True),
    "full": Scale(20_000, (), (0, 1, 2), 1000, 10_000),
}


@dataclass(frozen=True)
class Found:
    """What was found about one network: under rays, under the ensemble, and its nearest wrong answers."""

    rays: Evaluation
    ensemble: Evaluation
    minimal: Evaluation

    def figures(self) -> dict[str, float]:
        """Shares in % (0 of nothing); the mean distance in [0, 1] pixels, with 0 for an image that is wrong already.

        A median would say nothing of a network that gets half of the images wrong.
        """

        def percent(share: Share) -> float:
            return 100 * share.count / max(1, share.total)

        return {
            "accuracy": percent(self.rays.clean_accuracy()),
            "standing": percent(self.ensemble.worst_case() or Share(0, 1)),
            "mean_l2": float(self.minimal.distances("L2").clip(max=FARTHEST).mean()),
            "fgs_rate": percent(self.rays.success_rate("FGS")),
            "fgs_margin_rate": percent(self.rays.success_rate("FGS, margin loss")),
            "zero_gradients": percent(self.rays.zero_gradient_share("FGS")),
        }


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, attack and compare; networks and evaluations that are in `runs` already are not made again.

    A picture is left in `runs`. watch_training, watch_evaluation: given a name, what to call as that training or
    evaluation goes on. Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    plan = SCALES[scale]
    names = plan.variants or tuple(VARIANTS)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    # seed by seed, so that a stopped run has something to say about every variant
    for seed in plan.seeds:
        for name in names:
            shown = f"{name}, seed {seed}"
            found[name].append(
                _found(name, seed, plan, runs, data_dir, watch_training(shown), watch_evaluation(shown)).figures()
            )
    picture(found, runs / f"bang-beyond-{scale}.png", f"{len(plan.seeds)} seeds, scale {scale}")
    facts = provenance(
        seeds=list(plan.seeds),
        iterations=plan.iterations,
        seconds=round(time.monotonic() - began, 1),
        threads=torch.get_num_threads(),
    )
    numbers = {
        name: {measure: [round(one[measure], 4) for one in seeds] for measure in seeds[0]}
        for name, seeds in found.items()
    }
    return Result("bang-beyond", scale, claims(found), numbers, facts, table(found))


def recipe(name: str, seed: int, plan: Scale) -> Recipe:
    """How a variant is trained at a scale: every schedule as early as in its own recipe."""
    variant = VARIANTS[name]
    base = Recipe.named(variant.recipe)
    changes = [*variant.changes, *plan.changes, f"seed={seed}", f"training.iterations={plan.iterations}"]
    changes += [f"training.validate_every={plan.iterations}"]
    if at := base.tables["schedule"].get("at"):
        early = [max(1, round(one / base.training.iterations * plan.iterations)) for one in at]
        changes.append(f"schedule.at={early}")
    return Recipe.named(variant.recipe, changes)


def _found(
    name: str,
    seed: int,
    plan: Scale,
    runs: Path,
    data_dir: Path | None,
    watch_training: Callable[[Moment], None],
    watch_evaluation: Callable[[Stage], None],
) -> Found:
    """One network, trained and asked everything."""
    chosen = recipe(name, seed, plan)
    folder = runs / f"beyond-{plan.iterations}" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    model = training.train(chosen, folder, resume=folder.exists(), data_dir=data_dir, watch=watch_training)
    dataset = data.load(chosen.data[0], data_dir, **chosen.data[1])

    def ask(suite: Suite, samples: int, fast: bool = False) -> Evaluation:
        return judged(model, dataset, suite, folder, samples=samples, watch=watch_evaluation, fast=fast)

    rays = Suite("bang-fgs", {"FGS": FGSLine(), "FGS, margin loss": FGSLine(loss="margin")})
    minimal = SUITES["minimal"](None)
    nearest = {key: attack for key, attack in minimal.attacks.items() if key in ("DDN, L2", "FAB, L2")}
    return Found(
        ask(rays, plan.samples),
        ask(replace(SUITES[plan.suite](RADII[VARIANTS[name].radius]), curve=()), plan.costly, plan.fast),
        ask(replace(minimal, name="minimal-l2", attacks=nearest), plan.costly),
    )


def difference(found: dict[str, list[dict[str, float]]], name: str, measure: str) -> tuple[float, float]:
    """How much more a variant has of a measure than its reference, paired over the seeds: mean and half interval."""
    pairs = zip(found[name], found[VARIANTS[name].reference], strict=True)
    return spread([one[measure] - other[measure] for one, other in pairs])


def claims(found: dict[str, list[dict[str, float]]]) -> list[Claim]:
    """Of each variant that has a reference: whether more of its images stand, and whether wrong answers lie farther."""
    made = []
    for name in found:
        reference = VARIANTS[name].reference
        if name == reference or reference not in found or name in ("ResNet", "adversarial"):
            continue
        for measure, words, unit in (
            ("standing", "more images stand under the ensemble of attacks", " points"),
            ("mean_l2", "the nearest wrong answer lies farther away in L2", ""),
        ):
            mean, half = difference(found, name, measure)
            both = ", ".join(f"{one} {_told(found[one], measure)}" for one in (name, reference))
            made.append(
                Claim(
                    f"{name}: {words} than for {reference}",
                    bool(mean - half > 0),
                    f"difference {mean:.3g} ± {half:.2g}{unit} ({both})",
                )
            )
    return made


def table(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Every variant's figures, mean ± half of the 95 % interval."""
    titles = {
        "accuracy": "accuracy %",
        "standing": "standing %",
        "mean_l2": "mean L2",
        "fgs_rate": "FGS rate %",
        "fgs_margin_rate": "FGS rate %, margin loss",
        "zero_gradients": "zero gradients %",
    }
    lines = [["", *titles.values()]]
    return lines + [[name, *(_told(seeds, measure) for measure in titles)] for name, seeds in found.items()]


def _told(seeds: list[dict[str, float]], measure: str) -> str:
    mean, half = spread([one[measure] for one in seeds])
    return f"{mean:.3g} ± {half:.2g}" if math.isfinite(half) else f"{mean:.3g}"


def picture(found: dict[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    """Each variant's seeds as dots, their mean as a bar: standing, nearest wrong answer, accuracy."""
    panels = {
        "accuracy": "accuracy (%)",
        "standing": "standing under the ensemble (%)",
        "mean_l2": "mean distance of the nearest wrong answer (L2)",
    }
    with drawing.sheet(path, 13, 0.32 * len(found) + 1.2) as figure:
        for axes, (measure, words) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
            for place, (name, seeds) in enumerate(found.items()):
                values = [one[measure] for one in seeds]
                colour = drawing.BALANCED if "BANG" in name else drawing.REGULAR
                axes.plot(statistics.mean(values), place, "|", color=colour, markersize=14, markeredgewidth=2)
                axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.7)
            axes.set_title(words, fontsize=10)
        axes.set_yticks(range(len(found)), list(found))
        axes.invert_yaxis()
        figure.suptitle(f"Beyond the paper: {title}", fontsize=10)
