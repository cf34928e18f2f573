"""What a sweep asks of a network, and how one trial is carried out: trained into a run's folder, then judged.

accuracy            share of images classified correctly
loss                mean cross-entropy on them
seconds             what training took
robust              share that stands in the worst case over the suite's attacks with a bound
survives:ATTACK     share that stands under one attack
success:ATTACK      share of the right answers that it turns
pass:ATTACK         mean PASS of the examples it produced
linf:ATTACK         their mean Linf distance, in grey levels
l2:ATTACK           their mean L2 distance, in [0, 1] pixels
median:ATTACK       of a minimal attack: the distance within which half of the images have a wrong answer
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer import data, training
from bessemer.arithmetic import flushed
from bessemer.data import Dataset, Split
from bessemer.errors import UsageError, unknown
from bessemer.evaluation import Stage, Suite, evaluate, suites
from bessemer.records import Evaluation, file_name, read_metrics
from bessemer.records.sweep import Objective
from bessemer.threat import Threat, parse
from bessemer.training import Moment, Recipe

VALIDATION, TEST = "validation", "test"
CLEAN = {
    "accuracy": ("images classified correctly", "share"),
    "loss": ("mean cross-entropy", ""),
    "seconds": ("what training took", "seconds"),
}
WORST = {"robust": ("images that stand in the worst case", "share")}
BY_ATTACK = {
    "survives": ("images that stand under {}", "share"),
    "success": ("right answers that {} turns", "share"),
    "pass": ("mean PASS of what {} produced", ""),
    "linf": ("mean Linf distance of what {} produced, grey levels", ""),
    "l2": ("mean L2 distance of what {} produced", ""),
    "median": ("median distance to what {} finds", ""),
}
_AT_ONCE = 500  # images whose clean answers are asked for


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """A trial that was asked to stop, and can go on."""


@dataclass(frozen=True)
class Judge:
    """How the trained networks are attacked: with a suite, at a threat (text), on the first `samples` images.

    images: `validation`, or `test`; a data set that keeps no validation images is judged on its test images.
    """

    suite: str
    threat: str
    samples: int
    images: str = VALIDATION

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"--samples should be at least 1, found {self.samples}")
        if self.images not in (VALIDATION, TEST):
            raise unknown("--images", self.images, (VALIDATION, TEST))

    @property
    def ball(self) -> Threat | None:
        """The threat, if any."""
        return parse(self.threat) if self.threat else None

    def attacks(self) -> Suite:
        """The suite. Raises `UsageError` where there is none of that name, or it needs a threat and has none."""
        return suites.named(self.suite, self.ball)


def objective(name: str, maximise: bool, judge: Judge) -> Objective:
    """The objective of that name. Raises `UsageError` where there is none, or the judge's suite does not measure it."""
    option = "--maximise" if maximise else "--minimise"
    kind, colon, attack = name.partition(":")
    if not colon:
        if name in WORST and not any(_bounded(one) for one in judge.attacks().attacks.values()):
            raise UsageError(
                f"{option} {name}: the suite {judge.suite} has no attack with a bound; "
                "choose another --judge, such as quick, or an objective of one attack, such as survives:ATTACK"
            )
        if name not in CLEAN | WORST:
            raise unknown(f"{option}: objective", name, [*CLEAN, *WORST, *(f"{one}:ATTACK" for one in BY_ATTACK)])
        return Objective(name, maximise, *(CLEAN | WORST)[name], attacked=name in WORST)
    if kind not in BY_ATTACK:
        raise unknown(f"{option} {name}: measure", kind, BY_ATTACK)
    suite = judge.attacks()
    if attack not in suite.attacks:
        raise unknown(f"{option} {name}: attack of the suite {judge.suite}", attack, suite.attacks)
    if kind == "pass" and not suite.pass_scores:
        raise UsageError(f"{option} {name}: the suite {judge.suite} does not measure PASS; choose --judge bang")
    if kind == "median" and suite.attacks[attack].kind != "minimal":
        raise UsageError(
            f"{option} {name}: {attack} looks inside a ball, not for the nearest wrong answer; choose --judge minimal"
        )
    meaning, unit = BY_ATTACK[kind]
    return Objective(name, maximise, meaning.format(attack), unit, attacked=True)


def carry_out(
    recipe: Recipe,
    folder: Path,
    objectives: Sequence[Objective],
    judge: Judge,
    *,
    command: Sequence[str],
    device: str = "cpu",
    data_dir: Path | None = None,
    watch: Callable[[float], None] = lambda share: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train one trial into its folder, or go on with it, and measure it: a number per objective, and `seconds`.

    command: what the run's provenance names; the command line of a sweep may hold a password. watch: told the share of
    the trial that is done. stop: asked after every update and between attacks. A number that is not finite was not to
    be had, such as the PASS of an attack that produced nothing.
    Raises `Interrupted` where it was stopped, `DivergedError` where the loss is no longer a number, and what training
    and evaluation refuse.
    """
    attacked = any(one.attacked for one in objectives)
    part = 0.7 if attacked else 1.0  # of the time, as a guess

    def trained(moment: Moment) -> None:
        watch(part * moment.iteration / moment.iterations)

    def attacking(stage: Stage) -> None:
        if stop():
            raise Interrupted
        watch(part + (1 - part) * stage.done / max(stage.total, stage.done, 1))

    with _known_as(command):
        model: Any = training.train(
            recipe, folder, resume=True, device=device, data_dir=data_dir, watch=trained, stop=stop
        )
        if model.iteration < recipe.training.iterations:
            raise Interrupted
        model = training.load(folder, device)  # the weights that the recipe names, maybe the best
        dataset = judged_on(data.load(recipe.data[0], data_dir, **recipe.data[1]), judge)
        found = _clean(model, dataset.test, device)
        found["seconds"] = sum(line.get("seconds", 0.0) for line in read_metrics(folder / "metrics.jsonl"))
        if attacked:
            found |= _attacked(_evaluation(model, dataset, judge, folder, attacking), objectives)
    return found


def judged_on(dataset: Dataset, judge: Judge) -> Dataset:
    """The data set, with the images that a sweep looks at as its test images, and a name that says so."""
    if judge.images == TEST or not len(dataset.validation):
        return dataset
    return replace(dataset, name=f"{dataset.name}-{VALIDATION}", test=dataset.validation)


def _bounded(attack: Any) -> bool:
    return getattr(attack, "threat", None) is not None


@flushed()
@torch.no_grad()
def _clean(model: nn.Module, images: Split, device: str) -> dict[str, float]:
    """What the clean images say of a network in evaluation mode."""
    loss, right = 0.0, 0
    for start in range(0, len(images), _AT_ONCE):
        some, labels = images.to(device).at(slice(start, start + _AT_ONCE))
        logits = model(some)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum().item())
    return {"accuracy": right / len(images), "loss": loss / len(images)}


def _evaluation(
    model: nn.Module, dataset: Dataset, judge: Judge, folder: Path, watch: Callable[[Stage], None]
) -> Evaluation:
    """What the judge's suite finds, kept in the run's records; what is there already is read."""
    samples = min(judge.samples, len(dataset.test))
    asked = file_name(judge.suite, str(judge.ball or ""), dataset.name, samples)
    path = folder / "records" / f"{asked}.json"
    if not path.exists():
        journal = folder / "records" / f"{asked}.partial"
        found = evaluate(
            model, dataset, judge.suite, judge.ball, samples=samples, name=folder.name, resume=journal, watch=watch
        )
        found.write(path)
        shutil.rmtree(journal, ignore_errors=True)
    return Evaluation.read(path)


def _attacked(found: Evaluation, objectives: Sequence[Objective]) -> dict[str, float]:
    measured: dict[str, float] = {}
    by_attack: Mapping[str, Callable[[str], float]] = {
        "survives": lambda attack: found.robust_accuracy(attack).value,
        "success": lambda attack: found.success_rate(attack).value,
        "pass": lambda attack: found.produced(attack, "pass_score")[0],
        "linf": lambda attack: 255 * found.produced(attack, "linf")[0],
        "l2": lambda attack: found.produced(attack, "l2")[0],
        "median": lambda attack: float(np.median(found.distances(found.attack(attack).norm, attack))),
    }
    for one in objectives:
        kind, colon, attack = one.name.partition(":")
        if colon:
            measured[one.name] = by_attack[kind](attack)
        elif one.name in WORST:
            worst = found.worst_case()
            measured[one.name] = math.nan if worst is None else worst.value
    return measured


@contextmanager
def _known_as(command: Sequence[str]) -> Iterator[None]:
    """Records made meanwhile name this command."""
    before = sys.argv
    sys.argv = list(command)
    try:
        yield
    finally:
        sys.argv = before
