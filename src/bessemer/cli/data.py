"""`bessemer data`: which data sets there are, whether they are right, and how to get them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress, TaskID, TransferSpeedColumn
from rich.table import Table

from bessemer import data
from bessemer.cli.progress import quiet_until_started
from bessemer.data import places
from bessemer.errors import DataError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="List, check and download data sets.\n\n"
    "[bold]Examples[/bold]\n  bessemer data list\n  bessemer data get mnist\n\n"
    "They are looked for in --data-dir, then in $BESSEMER_DATA, then in\n~/.cache/bessemer/data.",
)

Directory = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Look here first; `get` downloads into it.")
]


@app.command("list")
def list_(data_dir: Directory = None) -> None:
    """Every data set: what it is, and where it was found or how to get it."""
    table = Table(show_edge=False)
    for column in ("name", "what", "images", "classes", "where"):
        table.add_column(column, overflow="fold")
    for name, about in data.ABOUT.items():
        table.add_row(
            name,
            escape(about.what),
            f"{about.training:,} + {about.test:,}" if about.training else "",
            str(len(about.per_class) or ""),
            escape(_where(name, data_dir)),
        )
    Console().print(table)


@app.command()
def check(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A data set of `list`; all that are found, if left out.")
    ] = None,
    data_dir: Directory = None,
) -> None:
    """Load data sets and compare them with what is published: counts, means and deviations, digests where they exist.

    Ends with exit code 1 where one is not what it should be.
    """
    if name is not None:
        _say(data.check(name, data_dir))
        return
    wrong = []
    for each, about in data.ABOUT.items():
        if not about.training:
            continue
        if about.folders and places.locate(about, places.roots(data_dir)) is None:
            _say(f"{each}: not here; {_where(each, data_dir)}")
            continue
        try:
            _say(data.check(each, data_dir))
        except DataError as problem:
            _say(str(problem))
            wrong.append(each)
    if wrong:
        raise DataError(f"not as published: {', '.join(wrong)}; the lines above say what to do")


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist or cifar10.")],
    data_dir: Directory = None,
) -> None:
    """Download a data set from its publisher, unless it is here already, and check it.

    What an interrupted download left is completed, so repeating the command goes on from there.
    """
    tasks: dict[str, TaskID] = {}
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with quiet_until_started(Progress(*columns, console=Console(stderr=True))) as bars:

        def show(file: str, done: int, total: int | None) -> None:
            bars.start()
            task = tasks[file] if file in tasks else tasks.setdefault(file, bars.add_task(file))
            bars.update(task, completed=done, total=total)

        verdict = data.get(name, data_dir, show)
    _say(verdict)


def _where(name: str, data_dir: Path | None) -> str:
    about = data.ABOUT[name]
    if not about.folders:
        return "here" if about.training else "where you say"
    found = places.locate(about, places.roots(data_dir))
    return str(found) if found else f"`bessemer data get {name}` downloads it"


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
