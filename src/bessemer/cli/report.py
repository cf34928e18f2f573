"""`bessemer report`: one page for one run or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bessemer.errors import UsageError
from bessemer.records import Sweep
from bessemer.records.sweep import FILE
from bessemer.report import report as write_report
from bessemer.report.sweep import write_sweep


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, or evaluations (*.json), side by side; or a sweep."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The page; unless given, report.html in the first run, or beside its file as *.html."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Test each run against the first, image by image.")
    ] = False,
) -> None:
    """Write one self-contained HTML page from what training and evaluation left in the runs.

    [bold]Examples[/bold]
      bessemer report runs/digits
      bessemer report runs/digits runs/bang-digits --compare --out compare.html

    The page needs no network: it can be mailed, printed and read on a phone.
    """
    first = runs[0]
    beside = first.with_suffix(".html") if first.suffix == ".json" and not first.is_dir() else first / "report.html"
    sweeps = [run for run in runs if (run / FILE).is_file()]
    if sweeps and len(runs) > 1:
        raise UsageError(f"{sweeps[0]} is a sweep, which has a page of its own; name it alone, or runs inside it")
    if sweeps:
        path = write_sweep(Sweep.read(first), out or beside)
    else:
        path = write_report(list(runs), out or beside, compare=compare)
    Console().print(f"Wrote {path}", markup=False, soft_wrap=True)
