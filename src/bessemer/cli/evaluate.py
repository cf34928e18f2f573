"""`bessemer evaluate`: attack a run, and keep a verdict per image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from bessemer import data as sources
from bessemer import evaluation, training
from bessemer.cli.progress import evaluation_bar, progress
from bessemer.data import Dataset
from bessemer.errors import UsageError
from bessemer.records import Evaluation
from bessemer.threat import Threat, parse


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, made by `bessemer train`.")],
    suite: Annotated[str | None, typer.Option(help="quick, bang, …; the recipe's unless given.")] = None,
    threat: Annotated[str | None, typer.Option(help="Linf:8/255, L2:0.5, L1:12; the recipe's unless given.")] = None,
    data: Annotated[str | None, typer.Option(help="Another data set than the recipe's.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Only the first so many test images.")] = None,
    seed: Annotated[int, typer.Option(help="Of random starts.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets are looked for first.")] = None,
) -> None:
    """Attack a trained network with every attack of a suite, on test images.

    bessemer evaluate runs/bang-digits

    bessemer evaluate runs/bang-lenet-mnist --suite bang --samples 1000

    bessemer evaluate runs/digits --suite quick --threat L2:0.5
    """
    model: Any = training.load(run, device)
    judging = model.recipe.evaluation
    chosen = parse(threat) if threat is not None else judging.threat
    dataset = images_for(model, data, data_dir)
    found = evaluated(model, dataset, suite or judging.suite, chosen, run, samples=samples, seed=seed)
    print_table(found)
    Console().print(f"\nNext: bessemer report {run}", markup=False, soft_wrap=True)


def images_for(model: Any, name: str | None = None, data_dir: Path | None = None) -> Dataset:
    """The data set of a run's recipe, or the one that is named, which must fit the model."""
    own, settings = model.recipe.data
    dataset = sources.load(name, data_dir) if name and name != own else sources.load(own, data_dir, **settings)
    if dataset.image_shape != model.image_shape:
        raise UsageError(
            f"the model takes images of shape {model.image_shape}, but {dataset.name} has {dataset.image_shape}; "
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
    """Evaluate with a progress bar, and write the records into the run."""
    with progress() as bars:
        show = evaluation_bar(bars, f"{run.name}: {suite}")
        found = evaluation.evaluate(
            model, dataset, suite, threat, samples=samples, seed=seed, name=run.resolve().name, watch=show
        )
    found.save(run / "records")
    return found


def print_table(found: Evaluation) -> None:
    """The summary as a table, and the doubts in words."""
    console = Console()
    table = Table(
        title=f"{found.model} under {found.suite}{f' at {found.threat}' if found.threat else ''}, {len(found)} images"
    )
    table.add_column("attack")
    for column in ("right %", "95 % interval", "turned %"):
        table.add_column(column, justify="right")
    with_pass = found.suite == "bang"
    if with_pass:
        table.add_column("PASS", justify="right")
        table.add_column("Linf, grey levels", justify="right")
    for row in found.summary():
        low, high = row["interval"]
        cells = [row["attack"], f"{100 * row['accuracy']:.1f}", f"{100 * low:.1f} – {100 * high:.1f}"]
        cells.append(f"{100 * row['success_rate']:.2f}" if "success_rate" in row else "")
        if with_pass and "pass_score" in row:
            cells += ["{:.4f} ± {:.4f}".format(*row["pass_score"]), "{:.2f} ± {:.2f}".format(*row["linf_grey_levels"])]
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
