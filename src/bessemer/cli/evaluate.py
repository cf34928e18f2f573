"""`bessemer evaluate`: attack a run, and keep a verdict per image."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from bessemer import data as sources
from bessemer import evaluation, training
from bessemer.cli.options import DataDir, Device
from bessemer.cli.progress import evaluation_bar, progress
from bessemer.data import Dataset
from bessemer.errors import ThreatError, UsageError
from bessemer.records import Evaluation
from bessemer.threat import Threat, parse


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, made by `bessemer train`.")],
    suite: Annotated[
        str | None, typer.Option(metavar="SUITE", help="quick, bang, …; the recipe's unless given.")
    ] = None,
    threat: Annotated[
        str | None, typer.Option(metavar="NORM:EPS", help="Linf:8/255, L2:0.5, L1:12; the recipe's unless given.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another data set than the recipe's (folder:PATH for your own).")
    ] = None,
    samples: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N test images.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of random starts.")] = 0,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Attack a trained network with every attack of a suite, on test images.

    [bold]Examples[/bold]
      bessemer evaluate runs/bang-digits
      bessemer evaluate runs/bang-lenet-mnist --suite bang --samples 1000
      bessemer evaluate runs/digits --suite quick --threat L2:0.5

    A verdict per image and attack is kept in RUN/records.
    """
    model: Any = training.load(run, device)
    if model.iteration < model.recipe.training.iterations:
        stands = f"{run} has come to iteration {model.iteration} of {model.recipe.training.iterations}"
        Console(stderr=True).print(f"Note: {stands}; this is what is judged.", markup=False, soft_wrap=True)
    judging = model.recipe.evaluation
    chosen = _threat(threat) if threat is not None else judging.threat
    dataset = images_for(model, data, data_dir)
    found = evaluated(model, dataset, suite or judging.suite, chosen, run, samples=samples, seed=seed)
    try:
        found.save(run / "records")
    finally:  # a full disk shall not cost what was found
        print_table(found)
    Console().print(f"\nNext: {shlex.join(['bessemer', 'report', str(run)])}", markup=False, soft_wrap=True)


def images_for(model: Any, name: str | None = None, data_dir: Path | None = None) -> Dataset:
    """The data set of a run's recipe, or the one that is named, which must fit the model."""
    own, settings = model.recipe.data
    if name is None or name == own:
        dataset = sources.load(own, data_dir, **settings)
    else:
        name, _, path = name.partition(":")
        dataset = sources.load(name, data_dir, **({"path": path} if path else {}))
    if dataset.image_shape != model.image_shape:
        raise UsageError(
            f"the model takes images of shape {model.image_shape}, but {dataset.name} has {dataset.image_shape}; "
            f"choose another --data, such as {own}"
        )
    if len(dataset.classes) != model.classes:
        raise UsageError(
            f"the model tells {model.classes} classes apart, but {dataset.name} has {len(dataset.classes)}; "
            f"choose another --data, such as {own}"
        )
    return dataset


def evaluated(
    model: nn.Module,
    dataset: Dataset,
    suite: str,
    threat: Threat | None,
    run: Path,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """What an evaluation of a run finds, with a progress bar meanwhile."""
    name = run.resolve().name
    with progress() as bars:
        show = evaluation_bar(bars, f"{name}: {suite}")
        return evaluation.evaluate(model, dataset, suite, threat, samples=samples, seed=seed, name=name, watch=show)


def print_table(found: Evaluation) -> None:
    """The summary as a table, and the doubts in words."""
    console = Console(highlight=False)
    threat = f" at {found.threat}" if found.threat else ""
    images = f"{len(found):,} image{'s' if len(found) > 1 else ''}"
    title = escape(f"{found.model} under {found.suite}{threat}, {images}")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("attack", overflow="fold")
    with_pass = found.suite == "bang"
    for column in ("right %", "95 %\ninterval", "turned %", *(("PASS", "Linf,\ngrey levels") if with_pass else ())):
        table.add_column(column, justify="right", overflow="fold")  # a narrow terminal shall not cut figures off
    for row in found.summary():
        low, high = row["interval"]
        cells = [row["attack"], f"{100 * row['accuracy']:.1f}", f"{100 * low:.1f} – {100 * high:.1f}"]
        cells.append(f"{100 * row['success_rate']:.2f}" if row.get("success_rate", math.nan) >= 0 else "")
        if with_pass and "pass_score" in row:
            cells += [_spread(row["pass_score"], 4), _spread(row["linf_grey_levels"], 2)]
        table.add_row(*cells)
    console.print(table)
    for finding in found.findings:
        if finding.verdict == "doubt":
            console.print(
                f"doubt: {finding.name}: {finding.figure}. {finding.advice}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )


def _threat(text: str) -> Threat:
    """The threat of `--threat`; a radius that cannot be meant is wrong use."""
    try:
        return parse(text)
    except (ThreatError, UsageError) as problem:
        raise UsageError(f"--threat {text!r}: {problem}") from problem


def _spread(found: tuple[float, float], digits: int) -> str:
    """Mean and deviation; nothing where no image was produced."""
    mean, deviation = found
    return "" if math.isnan(mean) else f"{mean:.{digits}f} ± {deviation:.{digits}f}"
