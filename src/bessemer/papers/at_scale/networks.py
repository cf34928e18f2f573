"""The networks of the at-scale reproductions: how each is trained, and what it is asked.

A network is trained once, into `runs/NAME-ITERATIONS-SEED`, and asked once, whichever reproduction needs it: what is in
its folder already is read, and what was stopped goes on where it was.

The question is the paper's: who stands under a long attack? PGD at Linf 8/255, untargeted, in steps of
max(1/255, eps / n) from a random start. From n = 8 on that step is 1/255 whatever n is, so that PGD-10 … PGD-1000 are
the beginnings of PGD-2000, and one attack that notes when each image falls gives the whole curve. Xie and Yuille attack
towards a random class; at ten classes the untargeted attack is the stronger one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bessemer import data, training
from bessemer.attacks import GaussianNoise, GradientAttack
from bessemer.data import Dataset
from bessemer.errors import unknown
from bessemer.evaluation import Stage, Suite
from bessemer.evaluation.suites import pgd_curve, through
from bessemer.papers.at_scale.compared import share
from bessemer.papers.at_scale.published import Printed
from bessemer.papers.judged import judged
from bessemer.records import BUDGETS, Evaluation
from bessemer.records.evaluation import Column
from bessemer.threat import Linf
from bessemer.training import Moment, Recipe

RECIPE = "at-scale-cifar"
THREAT = Linf(8 / 255)
NOISE = (8, 16, 32)  # standard deviations in grey levels
CONSISTENT = 0.8  # the share of training after which batch norm keeps its running statistics


@dataclass(frozen=True)
class Plan:
    """How a network is trained. words: what it is. changes: in the recipe of its scale.

    consistent: whether batch norm uses its running statistics in the last part of training.
    """

    words: str
    changes: tuple[str, ...] = ()
    consistent: bool = False


_CLEAN = 'method={name = "plain"}'
_MIXTURE = ("method.name=mixture", "norm.name=mixture")
_PAIRING = "method.name=logit-pairing"
_WEAK = ("method.attack.threat=Linf:4/255", "method.attack.step_size=1/255", "method.attack.steps=5")

PLANS = {
    "clean": Plan("clean images alone", (_CLEAN,)),
    **{
        f"share-{percent}": Plan(
            f"100 % adversarial + {percent} % clean", (f"method.clean_share={percent / 100}",) if percent else ()
        )
        for percent in (0, 20, 40, 60, 80, 100)
    },
    "mixture": Plan("100 % + 100 %, mixture norm", _MIXTURE),
    "mixture-statistics": Plan("mixture norm, gamma and beta shared", (*_MIXTURE, "norm.affine=false")),
    "mixture-affine": Plan("mixture norm, statistics shared", (*_MIXTURE, "norm.statistics=false")),
    "group-0": Plan("100 % adversarial, group norm", ("norm.name=group",)),
    "group-100": Plan("100 % + 100 %, group norm", ("norm.name=group", "method.clean_share=1.0")),
    "pairing": Plan("100 % + 100 %, logit pairing", (_PAIRING,)),
    "pairing-mixture": Plan("logit pairing, mixture norm", (_PAIRING, "norm.name=mixture")),
    **{
        f"denoise-{filter}": Plan(f"denoising: {filter}", (f"model.denoising={filter}", "model.denoise_from=2"))
        for filter in ("gaussian", "dot-product", "bilateral", "mean", "median")
    },
    "advprop": Plan("AdvProp, 4/255, 5 steps", (*_WEAK, "method.name=adv-prop", "norm.name=mixture")),
    "advprop-weak": Plan(
        "AdvProp, 1/255, 1 step",
        (
            "method.name=adv-prop",
            "norm.name=mixture",
            "method.attack.threat=Linf:1/255",
            "method.attack.step_size=1/255",
            "method.attack.steps=1",
        ),
    ),
    "advprop-single": Plan("the same images, 4/255, one norm", (*_WEAK, "method.clean_share=1.0")),
}


@dataclass(frozen=True)
class Scale:
    """iterations: of training; changes: in every recipe. depths, width: of the depth series.

    samples: test images under the long attack; counted: those that clean accuracy is counted on. longest: its steps;
    between: those of an attack that searches through another branch than the one that predicts. fast: whether the long
    attack searches in bfloat16 (each success is confirmed in float32). large: whether networks are made for a GPU.
    """

    iterations: int
    changes: tuple[str, ...]
    depths: tuple[int, ...]
    width: int
    samples: int
    counted: int
    longest: int
    between: int
    fast: bool
    large: bool = False

    @property
    def steps(self) -> tuple[int, ...]:
        """Where the curve is read."""
        return tuple(count for count in BUDGETS if count <= self.longest)

    def plans(self) -> dict[str, Plan]:
        """Every network that this scale knows."""
        made = dict(PLANS)
        for depth in self.depths:
            size = (f"model.depth={depth}", f"model.width={self.width}")
            made[f"depth-{depth}"] = Plan(f"{depth} layers, adversarial", size, consistent=True)
            made[f"depth-{depth}-clean"] = Plan(f"{depth} layers, clean", (*size, _CLEAN))
        first = self.depths[0]
        size = (f"model.depth={first}", f"model.width={self.width}")
        made[f"depth-{first}-usual"] = Plan(f"{first} layers, adversarial, usual batch norm", size)
        return made


_SMALL = ("model.depth=8", "training.batch_size=128", "data.validation=40000", "method.attack.steps=5")
_SMOKE = ("model.depth=8", "training.batch_size=16", "method.attack.steps=2")

SCALES = {
    "smoke": Scale(8, (*_SMOKE, "model.width=4", "data.validation=0"), (8, 14), 4, 16, 32, 20, 10, fast=False),
    # ten epochs of 10,000 images
    "cpu": Scale(780, (*_SMALL, "model.width=16"), (8, 14, 20, 26), 8, 500, 2000, 2000, 50, fast=True),
    # thirty epochs of 45,000 images
    "full": Scale(10_530, (), (20, 38, 56, 110), 32, 1000, 10_000, 2000, 50, fast=True, large=True),
}


@dataclass(frozen=True)
class Work:
    """What a reproduction is carried out with. runs: where networks go; ready: those of their folders seen to already.

    watch_training, watch_evaluation: given a network's name, what to call as its training or evaluation goes on.
    """

    scale: Scale
    runs: Path
    data_dir: Path | None = None
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None
    ready: set[Path] = field(default_factory=set)

    @property
    def device(self) -> str:
        """A GPU, where there is one and the networks are large enough to need it."""
        return "cuda" if self.scale.large and torch.cuda.is_available() else "cpu"

    @cached_property
    def dataset(self) -> Dataset:
        """The data that every network learned from."""
        source, settings = recipe("share-0", self.scale).data
        return data.load(source, self.data_dir, **settings).to(self.device)


@dataclass(frozen=True)
class Found:
    """What was found about one network: on clean and noisy images, and under the long attack, where it was asked."""

    clean: Evaluation
    long: Evaluation | None = None

    def right(self) -> Column:
        """Which clean images are classified correctly."""
        return self.clean.right

    def shaken(self, level: int) -> Column:
        """Which are so with Gaussian noise of so many grey levels."""
        return self.clean.survivors(_noise(level))

    def unattacked(self) -> Column:
        """Which of the images under the long attack are so before it."""
        assert self.long is not None
        return self.long.right

    def standing(self, steps: int) -> Column:
        """Which images are right without the attack and after so many of its steps.

        An image leaves the attack with the forward pass that finds it misclassified; the first looks at the start.
        """
        assert self.long is not None
        (rows,) = self.long.attacks
        fell_after = np.where(self.long.turned(rows.name), rows["forwards"] - 1, np.inf)
        column: Column = self.long.right & (fell_after > steps)
        return column


Networks = Mapping[str, list[Found]]  # by name: a finding per seed


def right(seeds: list[Found]) -> list[Column]:
    """Which clean images are classified correctly, a column per seed."""
    return [one.right() for one in seeds]


def after(seeds: list[Found], steps: int) -> list[Column]:
    """Which images are still right after so many steps, a column per seed."""
    return [one.standing(steps) for one in seeds]


def lost(seeds: list[Found], short: int, long: int) -> list[Column]:
    """Which images fall between so many steps and so many more, a column per seed."""
    return [one.standing(short) & ~one.standing(long) for one in seeds]


def recipe(name: str, scale: Scale, seed: int = 0) -> Recipe:
    """How a network is trained at a scale. Raises `UsageError` for a name that is none."""
    plans = scale.plans()
    if name not in plans:
        raise unknown("network", name, plans)
    plan, length = plans[name], scale.iterations
    changes = [*scale.changes, *plan.changes, f"about={plan.words}", f"seed={seed}"]
    changes += [f"training.iterations={length}", f"training.validate_every={length}"]
    made = Recipe.named(RECIPE, changes)
    if plan.consistent:
        start = round(CONSISTENT * length)
        around = {"name": "consistent-norm", "start": start, "inside": made.tables["method"]}
        made = Recipe.from_tables({**made.tables, "method": around}, made.name)
    return made


def found(work: Work, wanted: Mapping[str, int], climb: bool = True) -> dict[str, list[Found]]:
    """Every network that is wanted, trained and asked; seed by seed, so that a stopped run has the first of each.

    wanted: by name, how many seeds. `NAME/BRANCH` is a network with a mixture norm, seen through another branch than
    the one its method is judged by. climb: whether the long attack is made.
    """
    made: dict[str, list[Found]] = {name: [] for name in wanted}
    for seed in range(max(wanted.values())):
        for name in (name for name in wanted if seed < wanted[name]):
            made[name].append(_found(work, name, seed, climb))
    return made


def transferred(work: Work, name: str, seed: int, predicting: str, attacked: str) -> Column:
    """Which images one branch of a network gets right after an attack that searched through another."""
    folder = trained(work, name, seed)
    steps = work.scale.between
    suite = replace(climbing(steps), name=f"pgd-{steps}-{predicting}-from-{attacked}")
    other = training.load(folder, work.device, branch=attacked)
    model = training.load(folder, work.device, branch=predicting)
    evaluation = _asked(work, model, through(suite, other), folder, work.scale.samples, fast=False)
    return evaluation.survivors(f"PGD-{steps}")


def trained(work: Work, name: str, seed: int) -> Path:
    """The run folder of a network, trained where it is not yet."""
    folder = work.runs / f"{name}-{work.scale.iterations}-{seed}"
    if folder not in work.ready:
        chosen, watch = recipe(name, work.scale, seed), work.watch_training(folder.name)
        settings: dict[str, Any] = {"device": work.device, "data_dir": work.data_dir, "watch": watch}
        training.train(chosen, folder, resume=folder.exists(), **settings)
        work.ready.add(folder)
    return folder


def climbing(steps: int) -> Suite:
    """The suite `pgd-curve`, untargeted, which at this radius is a single attack; of so many steps."""
    suite = pgd_curve(THREAT, targeted=False)
    (attack,) = suite.attacks.values()
    assert isinstance(attack, GradientAttack)
    return replace(suite, attacks={f"PGD-{steps}": replace(attack, steps=steps)})


def calm() -> Suite:
    """Nobody attacks: clean images, and one draw of noise at each level."""
    return Suite("clean-and-noise", {_noise(level): GaussianNoise(level / 255) for level in NOISE})


def figures(found: list[Found], scale: Scale, published: Printed) -> dict[str, Any]:
    """A network in numbers: accuracy in %, a value per seed, and the printed ones."""

    def each(columns: list[Column]) -> list[float]:
        return [round(100 * float(column.mean()), 2) for column in columns]

    measured: dict[str, Any] = {"clean": each(right(found))}
    measured["noise"] = {str(level): each([one.shaken(level) for one in found]) for level in NOISE}
    if found[0].long is not None:
        measured["pgd"] = {str(steps): each(after(found, steps)) for steps in scale.steps}
    images = {"clean": len(found[0].clean), "pgd": len(found[0].long) if found[0].long is not None else 0}
    return {"ours": measured, "images": images, "published": published}


def numbers(found: Networks, scale: Scale, published: Mapping[str, Printed]) -> dict[str, Any]:
    """Every network in numbers, and what it is."""
    return {
        name: {"words": words(name, scale), **figures(seeds, scale, published.get(name, {}))}
        for name, seeds in found.items()
    }


def table(found: Networks, scale: Scale, published: Mapping[str, Printed]) -> list[list[str]]:
    """A line per network: accuracy in % with its interval, and the printed figure in parentheses."""
    climbed = next(iter(found.values()))[0].long is not None
    steps = sorted({10, 100, 1000, scale.longest} & set(scale.steps)) if climbed else []
    shaken = [] if climbed else list(NOISE)
    lines = [["", "clean", *(f"PGD-{count}" for count in steps), *(f"noise {level}" for level in shaken), "seeds"]]
    for name, seeds in found.items():
        measured = {"clean": right(seeds)} | {str(count): after(seeds, count) for count in steps}
        measured |= {f"noise {level}": [one.shaken(level) for one in seeds] for level in shaken}
        printed = published.get(name, {})
        own = [
            share(columns).level() + (f" ({printed[what]})" if what in printed else "")
            for what, columns in measured.items()
        ]
        lines.append([words(name, scale), *own, str(len(seeds))])
    return lines


def words(name: str, scale: Scale) -> str:
    """What a network is."""
    plan, _, branch = name.partition("/")
    return scale.plans()[plan].words + (f", {branch} branch" if branch else "")


def _found(work: Work, name: str, seed: int, climb: bool) -> Found:
    plan, _, branch = name.partition("/")
    folder = trained(work, plan, seed)
    model = training.load(folder, work.device, branch=branch)
    ask = [(calm(), work.scale.counted, False)]
    if climb:
        ask.append((climbing(work.scale.longest), work.scale.samples, work.scale.fast))
    asked = []
    for suite, samples, fast in ask:
        own = replace(suite, name=f"{suite.name}-{branch}") if branch else suite
        asked.append(_asked(work, model, own, folder, samples, fast))
    return Found(*asked)


def _asked(work: Work, model: nn.Module, suite: Suite, folder: Path, samples: int, fast: bool) -> Evaluation:
    watch = work.watch_evaluation(f"{folder.name}, {suite.name}")
    return judged(model, work.dataset, suite, folder, samples=samples, watch=watch, fast=fast)


def _noise(level: int) -> str:
    return f"Gaussian, {level} grey levels"
