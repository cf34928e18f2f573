"""`bessemer purify`: what adversarial training did to the neurons of a clean network."""

from __future__ import annotations

import copy
import math
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from bessemer import training
from bessemer.errors import UsageError
from bessemer.models.foreign import PICKLED, from_spec
from bessemer.purification.purify import purify as compared
from bessemer.records.purification import PURIFICATIONS, SHOWN_RANKS, Purification
from bessemer.report import report

_WEIGHTS = (".safetensors", *PICKLED)


def purify(
    clean: Annotated[
        str,
        typer.Argument(metavar="CLEAN", help="A run's folder; or your own, as module:function or weights of --model."),
    ],
    robust: Annotated[str, typer.Argument(metavar="ROBUST", help="The network after adversarial training, likewise.")],
    initial: Annotated[
        str | None, typer.Option(metavar="NETWORK", help="Before any training; a run knows its own.")
    ] = None,
    independent: Annotated[
        str | None, typer.Option(metavar="NETWORK", help="A clean one from another seed, to compare with chance.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Whose weights the files are: .safetensors, .pt, .pth."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where record and page go; ROBUST, or runs/NAME for your own.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record here too, as JSON.")] = None,
) -> None:
    """Compare two networks neuron by neuron: what was kept, what was removed.

    [bold]Examples[/bold]
      bessemer purify runs/clean runs/robust
      bessemer purify runs/clean runs/robust --independent runs/other-seed
      bessemer purify clean.pt robust.pt --model mymodule:build_model

    For each layer with filters the angles between initial, clean and robust
    weights, and how much of the change an update of low rank explains.
    """
    if json is not None and json.is_dir():
        raise UsageError(f"--json: {json} is a folder; name the file to write")
    found = compared(
        _network(clean, model),
        _network(robust, model),
        None if initial is None else _network(initial, model),
        None if independent is None else _network(independent, model),
        names=None if Path(clean).is_dir() and Path(robust).is_dir() else (_name(clean), _name(robust)),
    )
    folder = out or (Path(robust) if Path(robust).is_dir() else Path("runs") / re.sub(r"[^\w.-]+", "-", robust))
    try:
        found.save(folder / PURIFICATIONS)
        if json is not None:
            found.write(json)
        page = report([folder], folder / "report.html")
    finally:  # a full disk shall not cost what was found
        print_table(found)
    Console().print(f"\nWrote {page}", markup=False, soft_wrap=True)
    if found.relation == "unrelated" and Path(clean).is_dir():
        again = shlex.join(["bessemer", "train", "RECIPE", "--set", f"init={clean}", "--out", "runs/NAME"])
        Console().print(f"Next: {again}", markup=False, soft_wrap=True)


def print_table(found: Purification) -> None:
    """A row per layer, and what a reader must know of it."""
    console = Console(highlight=False)
    table = Table(
        title=escape(f"{found.clean} (w) → {found.robust} (w′)"),
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    table.add_column("layer", overflow="fold")
    rows = found.summary()
    shown = {
        "initial_clean": "θ(w⁰,w)",
        "initial_robust": "θ(w⁰,w′)",
        "clean_robust": "θ(w,w′)",
        "independent": "θ(w,u)",
        "chance": "random",
    }
    measured = {key: head for key, head in shown.items() if any(not math.isnan(row[key]) for row in rows)}
    heads = ["neurons", *measured.values(), "kept %", *(f"rank {rank}\n%" for rank in SHOWN_RANKS)]
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    for row in rows:
        cells = [f"{row['neurons']:,}", *(_number(row[key]) for key in measured), _percent(row["outweighs"])]
        table.add_row(
            escape(row["layer"]),
            *cells,
            *(_percent(row[f"rank_{rank}"]) for rank in SHOWN_RANKS),
            style="bold" if row is rows[-1] else None,
        )
    console.print(table)
    console.print(
        "Medians over neurons. kept: the neurons with β > 0 and ‖βw′‖ > ‖v‖, where w = βw′ + v. "
        "rank: how much of ‖W′ − W‖² an update of that rank explains.",
        style="dim",
        soft_wrap=True,
    )
    for remark in found.remarks:
        style = "yellow" if remark.startswith("unrelated") else None
        console.print(f"note: {remark}", style=style, markup=False, soft_wrap=True)


def _network(given: str, model: str | None) -> nn.Module:
    """A run, a file of weights for --model, or a model of one's own by its address."""
    path = Path(given)
    if path.suffix in _WEIGHTS and not path.is_dir():
        if model is None:
            raise UsageError(f"{given} holds weights; say whose they are with --model module:function")
        # an address may name a module instead of a function: each file then needs its own copy
        return copy.deepcopy(from_spec(model, path))
    if ":" in given and not path.exists():
        return copy.deepcopy(from_spec(given))
    return training.load(path)


def _name(given: str) -> str:
    path = Path(given)
    return path.resolve().name if path.is_dir() else path.stem if path.suffix in _WEIGHTS else given


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"
