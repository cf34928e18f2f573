"""`bessemer sweep`: a recipe at every point of a grid, or a search for its best settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from bessemer import sweeps
from bessemer.cli.options import DataDir, Interrupted
from bessemer.cli.progress import progress
from bessemer.cli.signals import caught_signals
from bessemer.errors import BessemerError, UsageError, unknown
from bessemer.records import Sweep
from bessemer.records.sweep import DONE, FAILED
from bessemer.report.sweep import figure_of, write_sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from bessemer.sweeps.worker import Standing

SHOWN = 8  # trials of a front in the terminal; all are on the page


class AllFailedError(BessemerError):
    """A sweep of which no trial came to an end."""


def sweep(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A name that `bessemer list recipes` shows, or a .toml file.")
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=VALUES", help="FROM:TO:STEP or a,b,c; repeat it for all combinations."),
    ] = None,
    search: Annotated[
        int | None, typer.Option("--search", metavar="N", help="Search for the best settings, in N trials in all.")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="KEY=RANGE", help="For --search: LOW:HIGH, LOW:HIGH:log or a,b,c; repeatable."),
    ] = None,
    maximise: Annotated[
        list[str] | None, typer.Option("--maximise", metavar="NAME", help="An objective, of those above; repeatable.")
    ] = None,
    minimise: Annotated[
        list[str] | None, typer.Option("--minimise", metavar="NAME", help="The same, where less is better.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all trials; repeatable.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="SUITE", help="The attacks; the recipe's suite unless given.")
    ] = None,
    threat: Annotated[
        str | None, typer.Option("--threat", metavar="NORM:EPS", help="Their ball; the recipe's unless given.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="How many images are attacked.")] = 500,
    images: Annotated[
        str, typer.Option("--images", metavar="WHICH", help="validation, to choose settings on, or test.")
    ] = "validation",
    workers: Annotated[int, typer.Option("--workers", metavar="K", help="Processes that share the trials.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            envvar="BESSEMER_STORAGE",
            help="postgresql://… for many machines; SQLite in the sweep's folder unless given.",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Its name there; the folder's unless given.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the search.")] = 0,
    contour: Annotated[
        str | None, typer.Option("--contour", metavar="X,Y", help="The settings of the contour plots.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The sweep's folder; runs/RECIPE-sweep unless given.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, …; several by commas, for workers in turn.")
    ] = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Train a recipe at many settings: at every point of a grid, or in search of the best.

    [bold]Examples[/bold]
      bessemer sweep bang-digits --grid method.beta=1.0:1.6:0.2
        --grid method.epsilon=0.78:0.84:0.02 --workers 2
      bessemer sweep bang-digits --search 20 --over method.beta=0.5:1.6
        --over optimizer.lr=1e-3:1e-1:log --maximise robust
      bessemer sweep bang-digits --grid method.epsilon=0.785,0.815,0.84
        --judge bang --maximise accuracy --minimise "success:FGS, margin loss"

    [bold]Objectives[/bold]
      accuracy, loss: of clean images; seconds: of training
      robust: what stands in the worst case over the attacks with a bound
      survives:ATTACK, success:ATTACK: shares that one attack leaves, turns
      pass:ATTACK, linf:ATTACK, l2:ATTACK: means of what it produced
      median:ATTACK: distance of the nearest wrong answer (--judge minimal)

    Unless named: accuracy and, where there is a threat, robust. Several give
    a Pareto front.

    Each trial is a run, OUT/trial-NNNN. The same command goes on after a stop
    or a kill, and joins in from another terminal; a machine joins with the
    same --storage. A grid over the same settings, or a larger N, adds trials.
    """
    folder = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    axes = _pair(contour, [text.partition("=")[0].strip() for text in [*(grid or []), *(over or [])]])
    with caught_signals() as caught, progress() as bars:
        found = sweeps.sweep(
            recipe,
            folder,
            changes=set_ or [],
            grid=grid or [],
            search=search,
            over=over or [],
            maximise=maximise or [],
            minimise=minimise or [],
            judge=judge,
            threat=threat,
            samples=samples,
            images=images,
            seed=seed,
            workers=workers,
            storage=storage,
            study=study,
            device=device,
            data_dir=data_dir,
            watch=_bar(bars, folder.name),
            stop=lambda: bool(caught),
        )
    page = write_sweep(found, folder / "report.html", axes)
    if caught:
        raise Interrupted(
            f"stopped and saved after {len(found.done)} of {len(found.trials)} trials; the same command goes on"
        )
    _print(found)
    Console().print(f"Open {page}", markup=False, highlight=False, soft_wrap=True)
    if not found.done:
        reasons = [trial.reason for trial in found.trials if trial.reason]
        raise AllFailedError(f"no trial came to an end; the first: {reasons[0]}")


def _pair(contour: str | None, varied: list[str]) -> tuple[str, str] | None:
    """The settings of the contour plots; refused before hours are spent."""
    if contour is None:
        return None
    keys = [key.strip() for key in contour.split(",")]
    if len(keys) != 2:
        raise UsageError(f"--contour takes two settings, such as method.beta,method.epsilon, not {contour!r}")
    for key in keys:
        if key not in varied:
            raise unknown("--contour: a setting that is varied", key, varied)
    return keys[0], keys[1]


def _bar(bars: Progress, name: str) -> Callable[[Standing], None]:
    """A bar over the trials; returns what to call with how far the sweep is."""
    task = bars.add_task(name, total=None, note="", visible=False)

    def show(standing: Standing) -> None:
        ended = standing.done + standing.failed
        failed = f"  {standing.failed} failed" if standing.failed else ""
        note = f"{standing.running} under way{failed}"
        bars.start()
        bars.update(task, completed=ended + standing.share, total=standing.total, note=note, visible=True)

    return show


def _print(found: Sweep) -> None:
    """The best, or the Pareto front, with what trains it alone."""
    console = Console(highlight=False)
    several = len(found.objectives) > 1
    shown = found.front() if several else [trial for trial in [found.best(found.objectives[0])] if trial]
    failed = sum(trial.state == FAILED for trial in found.trials)
    title = f"{'Pareto front' if several else 'Best'} of {sum(trial.state == DONE for trial in found.trials)} trials"
    table = Table(
        title=title + (f", {failed} failed" if failed else ""), title_justify="left", box=None, pad_edge=False
    )
    table.add_column("trial", no_wrap=True)
    for column in [*(one.key for one in found.varied), *(one.name for one in found.objectives)]:
        table.add_column(escape(column), justify="right", overflow="fold")
    for trial in shown[:SHOWN]:
        values = [f"{value:.5g}" if isinstance(value, float) else str(value) for value in trial.values.values()]
        measured = [figure_of(one, trial.measured[one.name]) for one in found.objectives]
        table.add_row(trial.name, *map(escape, values), *measured)
    console.print(table)
    if len(shown) > SHOWN:
        console.print(f"and {len(shown) - SHOWN} more")
    if shown:
        console.print(f"\nThe first alone: {shown[0].command}", markup=False, soft_wrap=True)
