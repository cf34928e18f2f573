"""The networks that the figures share: each is trained once, into `runs/ARCHITECTURE-WHICH`.

Allen-Zhu and Li compare a cleanly trained network with the one that adversarial training makes of it, so every network
here but the clean ones starts from the weights of `ARCHITECTURE-clean`, and keeps these and the random ones before them
(`bessemer.training.starting_weights`, `initial_weights`). A network that is there already is not trained again; what
was stopped goes on where it was.

After the paper are the data (CIFAR-10), the kinds of architecture (an AlexNet, a residual network) and the radii. Ours
are everything else: the networks' sizes, optimiser and length of training, and the number of PGD steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bessemer import training
from bessemer.errors import UsageError, unknown
from bessemer.training import Moment, Recipe
from bessemer.training.checkpoint import Checkpoint, newest, steps

CLEAN = {"clean": 0, "clean-other": 1}  # the seeds of two networks that have nothing in common but the data
STRONGEST = "linf-8"  # what low-rank and layer-wise training is adversarial to

# the radii of the paper's figures, in [0, 1] units; on MNIST larger ones that do about as much
COLOUR = {"linf-4": "Linf:4/255", "linf-8": "Linf:8/255", "l2-0.25": "L2:0.25", "l2-0.5": "L2:0.5"}
DIGITS = {"linf-4": "Linf:0.1", "linf-8": "Linf:0.2", "l2-0.25": "L2:1.0", "l2-0.5": "L2:2.0"}


@dataclass(frozen=True)
class Plan:
    """How an architecture is trained at a scale.

    recipe: the one that ships with Bessemer. changes: in it, for every network; clean, robust: for those alone, and
    bang: for that one besides. steps: of PGD in training.
    """

    recipe: str
    changes: list[str]
    clean: list[str]
    robust: list[str]
    bang: list[str]
    steps: int


def _lasting(iterations: int) -> list[str]:
    """Looked at once, at the end; what is stopped loses little."""
    settings = {"iterations": iterations, "validate_every": iterations, "checkpoint_every": 250}
    return [f"training.{name}={value}" for name, value in settings.items()]


# 10,000 training images; the others are held out
_SUBSET = ["data.validation=40000"]
# on a GPU: the architectures' own widths, all images that are not held out, batches of 128
_FULL = ["training.batch_size=128"]
# balanced gradients are several times as long: at the others' rates the clean network would be forgotten first
_GENTLE_ALEXNET, _GENTLE_RESNET = ["optimizer.lr=0.004"], ["optimizer.lr=0.02"]

PLANS: dict[str, dict[str, Plan]] = {
    "smoke": {
        "lenet": Plan(
            "lenet-mnist",
            ["schedule.name=fixed", "training.batch_size=32"],
            _lasting(100),
            _lasting(20),
            [],
            steps=2,
        )
    },
    "cpu": {
        "alexnet": Plan("alexnet-cifar", _SUBSET, _lasting(2000), _lasting(750), _GENTLE_ALEXNET, steps=2),
        "resnet": Plan(
            "resnet-cifar", _SUBSET, _lasting(800), [*_lasting(350), "optimizer.lr=0.1"], _GENTLE_RESNET, steps=2
        ),
    },
    "full": {
        "alexnet": Plan(
            "alexnet-cifar",
            [*_FULL, "model.width=96", "model.dropout=0.5"],
            _lasting(21_000),
            _lasting(14_000),
            _GENTLE_ALEXNET,
            steps=10,
        ),
        "resnet": Plan(
            "resnet-cifar",
            [*_FULL, "model.depth=34", "model.width=64"],
            _lasting(21_000),
            [*_lasting(14_000), "optimizer.lr=0.1"],
            _GENTLE_RESNET,
            steps=10,
        ),
    },
}


def run(
    architecture: str,
    which: str,
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
) -> Path:
    """The run folder of a network, trained first where it is not yet, and the clean one that it starts from before it.

    architecture: `lenet` at the scale smoke (MNIST), `alexnet` or `resnet` at cpu and full (CIFAR-10). which: `clean`,
    `clean-other` (another seed), `linf-4`, `linf-8`, `l2-0.25`, `l2-0.5` (adversarially trained), `bang`; and against
    linf-8, `low-rank-R` (an update of rank R) and `only-LAYER` (that layer alone, or all that are part of it).
    watch: given a network's name, what to call as its training goes on.
    Raises `UsageError` for a name that is none of these.
    """
    chosen = recipe(architecture, which, scale, runs)
    if which not in CLEAN:
        run(architecture, "clean", scale, runs, data_dir, watch)
    folder = runs / f"{architecture}-{which}"
    note = (lambda moment: None) if _finished(folder, chosen) else watch(folder.name)
    training.train(chosen, folder, resume=folder.exists(), device=device(scale), data_dir=data_dir, watch=note)
    return folder


def recipe(architecture: str, which: str, scale: str, runs: Path) -> Recipe:
    """The recipe of a network. Raises as `run` does."""
    if scale not in PLANS:
        raise unknown("scale", scale, PLANS)
    if architecture not in PLANS[scale]:
        raise unknown(f"architecture at the scale {scale}", architecture, PLANS[scale])
    plan = PLANS[scale][architecture]
    if which in CLEAN:
        return Recipe.named(plan.recipe, [*plan.changes, *plan.clean, f"seed={CLEAN[which]}"])
    base = Recipe.named(plan.recipe, [*plan.changes, *plan.robust, *(plan.bang if which == "bang" else [])])
    init = {"init": str(runs / f"{architecture}-clean")}
    return Recipe.from_tables({**base.tables, **init, "method": _method(architecture, which, plan.steps)}, base.name)


def threat(architecture: str, which: str) -> str:
    """The ball a network is trained to withstand, as text; empty where there is none."""
    if which.startswith(("low-rank-", "only-")):
        which = STRONGEST
    return (DIGITS if architecture == "lenet" else COLOUR).get(which, "")


def device(scale: str) -> str:
    """Where the networks of a scale are trained: at full on a GPU, where there is one."""
    return "cuda" if scale == "full" and torch.cuda.is_available() else "cpu"


def _method(architecture: str, which: str, steps: int) -> dict[str, Any]:
    """The `[method]` of a network that starts from the clean one. BANG's settings are B0 of its Tables 1 and 2."""
    ball = threat(architecture, which)
    adversarial = {"name": "adversarial", "attack": {"name": "pgd", "threat": ball, "steps": steps}}
    if which == "bang":
        settings = (1.0, 0.785, 1.0) if architecture == "lenet" else (0.4, 0.855, 0.5)
        return {"name": "bang", **dict(zip(("beta", "epsilon", "misclassified"), settings, strict=True))}
    if which.startswith("low-rank-") and which.removeprefix("low-rank-").isdecimal():
        return {"name": "low-rank", "rank": int(which.removeprefix("low-rank-")), "inside": adversarial}
    if which.startswith("only-"):
        return {"name": "only-layers", "match": which.removeprefix("only-"), "inside": adversarial}
    if which not in COLOUR:
        names = ", ".join([*CLEAN, *COLOUR, "bang"])
        raise UsageError(f"network: {which!r} is not known; allowed: {names}, low-rank-R and only-LAYER")
    return adversarial


def _finished(folder: Path, chosen: Recipe) -> bool:
    return bool(steps(folder)) and Checkpoint.read(newest(folder)).iteration >= chosen.training.iterations
