"""`bessemer reproduce`: a table or figure of a paper, beside the published one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bessemer.cli.options import DataDir
from bessemer.cli.progress import evaluation_bar, progress, training_bar
from bessemer.errors import UsageError, unknown
from bessemer.papers import EXPERIMENTS, LABORATORY, home
from bessemer.records import write_whole


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(EXPERIMENTS)}.")],
    scale: Annotated[
        str, typer.Option(metavar="SCALE", help="smoke (seconds), cpu where there is one, or full (the paper's size).")
    ] = "full",
    runs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where its networks go; runs/NAME-SCALE unless given.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the result goes.")] = Path("results"),
    data_dir: DataDir = None,
    dim: Annotated[
        int | None, typer.Option(metavar="D", min=2, help="purification-lab: only its claims, at this dimension.")
    ] = None,
    sparsity: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="purification-lab, with --dim: active atoms in a sample; 6.")
    ] = None,
) -> None:
    """Do a paper's experiment again and say which of its claims held.

    [bold]Example[/bold]
      bessemer reproduce bang-table1 --scale smoke

    What is stopped goes on where it was when the same command is given again.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    settings = {key: value for key, value in (("dim", dim), ("sparsity", sparsity)) if value is not None}
    if settings and name != LABORATORY:
        raise UsageError(f"--dim and --sparsity belong to {LABORATORY}, not to {name}")
    if sparsity is not None and dim is None:
        raise UsageError("--sparsity needs a --dim beside it")
    folder = runs or Path("runs") / home(name, scale)
    with progress() as bars:
        watch = partial(training_bar, bars), partial(evaluation_bar, bars)
        result = EXPERIMENTS[name](scale, folder, data_dir, *watch, **settings)
    path = result.write(out)
    for picture in sorted(folder.glob(f"{name}-{result.scale}*.png")):
        write_whole(out / picture.name, picture.read_bytes())
    table = Table(title=f"{name}, {scale}")
    for column in ("held", "claim", "here", "published"):
        table.add_column(column, overflow="fold")
    for claim in result.claims:
        table.add_row("yes" if claim.holds else "NO", *map(escape, (claim.text, claim.value, claim.published)))
    console = Console()
    if result.table:
        figures = Table(title=f"{name}, {scale}: here (published)")
        for column in result.table[0]:
            figures.add_column(column, overflow="fold")
        for line in result.table[1:]:
            figures.add_row(*map(escape, line))
        console.print(figures)
    console.print(table)
    page = folder / f"{name}-{result.scale}.html"
    console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)
    if page.is_file():
        console.print(f"Open {page}", markup=False, highlight=False, soft_wrap=True)
