"""`bessemer train`: a recipe in, a run folder out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

from bessemer import training
from bessemer.cli.progress import progress, training_bar
from bessemer.training import Moment, Recipe


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `bessemer list recipes`) or a .toml file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as method.beta=1.2.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/RECIPE unless given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets are looked for first.")] = None,
) -> None:
    """Train a network as a recipe says.

    bessemer train bang-digits

    bessemer train bang-lenet-mnist --set method.epsilon=0.815 --out runs/b1

    Ctrl-C (or a kill) loses nothing: [bold]--resume[/bold] goes on, and ends in the same weights, bit for bit.
    """
    chosen = Recipe.named(recipe, set_ or [])
    folder = out or Path("runs") / chosen.name
    _, interrupted = trained(chosen, folder, resume=resume, device=device, data_dir=data_dir)
    console = Console()
    if interrupted:
        again = f"bessemer train {recipe}" + "".join(f" --set {change}" for change in set_ or [])
        console.print(f"Stopped and saved. Go on with: {again} --out {folder} --resume", markup=False, soft_wrap=True)
        raise typer.Exit(130)
    console.print(f"Trained into {folder}. Next: bessemer evaluate {folder}", markup=False, soft_wrap=True)


def trained(
    recipe: Recipe, folder: Path, *, resume: bool = False, device: str = "cpu", data_dir: Path | None = None
) -> tuple[nn.Module, bool]:
    """Train with a progress bar; returns the model, and whether Ctrl-C (or SIGTERM) ended it early."""
    with _signals() as caught, progress() as bars:
        show = training_bar(bars, recipe.name)
        last = Moment(0, 0, 0, 0)

        def watch(moment: Moment) -> None:
            nonlocal last
            last = moment
            show(moment)

        model = training.train(
            recipe, folder, resume=resume, device=device, data_dir=data_dir, watch=watch, stop=lambda: bool(caught)
        )
    return model, bool(caught) and last.iteration < last.iterations


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM instead of dying of them; a second one is no longer caught."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, before[one])

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
