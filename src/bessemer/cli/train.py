"""`bessemer train`: a recipe in, a run folder out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

from bessemer import processes, training
from bessemer.cli.options import DataDir, Device, Interrupted
from bessemer.cli.progress import progress, training_bar
from bessemer.cli.signals import caught_signals
from bessemer.errors import unknown
from bessemer.evaluation import SUITES
from bessemer.purification.movement import movement_of
from bessemer.records import read_metrics
from bessemer.training import Moment, Recipe
from bessemer.training.stalling import stalling_of


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A name that `bessemer list recipes` shows, or a .toml file.")
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; runs/RECIPE unless given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Train a network as a recipe says.

    [bold]Examples[/bold]
      bessemer train bang-digits
      bessemer train bang-lenet-mnist --set method.epsilon=0.815 --out runs/b1
      bessemer train my-own.toml --set training.iterations=500 --set seed=1

    A run's recipe.toml shows every setting there is; copy it to write your own.

    Ctrl-C (or a kill) loses nothing: [bold]--resume[/bold] goes on, and ends in the same
    weights, bit for bit. Under torchrun, processes share every batch.
    """
    chosen = Recipe.named(recipe, set_ or [])
    if chosen.evaluation.suite not in SUITES:  # what no recipe can know: training does not know evaluation
        raise unknown("evaluation.suite", chosen.evaluation.suite, SUITES)
    folder = out or Path("runs") / chosen.name
    with processes.under_torchrun(device) as own_device:
        _, interrupted = trained(chosen, folder, resume=resume, device=own_device, data_dir=data_dir)
        if processes.place()[0]:
            return
    if interrupted:
        again = ["bessemer", "train", recipe, *(f"--set={change}" for change in set_ or []), "--out", str(folder)]
        again += ["--device", device] if device != "cpu" else []
        again += ["--data-dir", str(data_dir)] if data_dir else []
        raise Interrupted(f"stopped and saved; go on with: {shlex.join(again)} --resume")
    console = Console()
    for said in _validated(folder):
        console.print(said, markup=False, highlight=False)
    next_ = shlex.join(["bessemer", "evaluate", str(folder)])
    console.print(f"Trained into {folder}. Next: {next_}", markup=False, highlight=False, soft_wrap=True)


def _validated(folder: Path) -> list[str]:
    """What validation said of the last and of the best weights, where there is an attack to tell them apart."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "validation_robust_accuracy" in line]
    if not lines:
        return []
    best = max(lines, key=lambda line: line["validation_robust_accuracy"])
    return [
        f"{which}, iteration {line['iteration']}: {100 * line['validation_accuracy']:.1f} % of the validation images "
        f"right, {100 * line['validation_robust_accuracy']:.1f} % standing under the recipe's attack"
        for which, line in (("last", lines[-1]), ("best", best))
    ]


def trained(
    recipe: Recipe, folder: Path, *, resume: bool = False, device: str = "cpu", data_dir: Path | None = None
) -> tuple[nn.Module, bool]:
    """Train with a progress bar, noting how the neurons move and which samples still move them; returns the model, and
    whether Ctrl-C (or SIGTERM) ended it early."""
    moved, stalled = movement_of(folder, recipe), stalling_of(recipe, data_dir)
    with caught_signals() as caught, progress() as bars:
        alone = processes.place()[0] == 0  # of several processes only the first shows how far it is
        show = training_bar(bars, recipe.name) if alone else lambda moment: None
        last = Moment(0, 0, 0, 0)

        def watch(moment: Moment) -> None:
            nonlocal last
            last = moment
            show(moment)

        model = training.train(
            recipe,
            folder,
            resume=resume,
            device=device,
            data_dir=data_dir,
            watch=watch,
            stop=lambda: bool(caught),
            note=lambda model: {**moved(model), **stalled(model)},
        )
    return model, bool(caught) and last.iteration < last.iterations
