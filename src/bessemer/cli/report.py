"""`bessemer report`: one page for one run or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bessemer.report import report as write_report


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, side by side.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; report.html in the first run unless given.")
    ] = None,
) -> None:
    """Write one self-contained HTML page from what training and evaluation left in the runs.

    [bold]Examples[/bold]
      bessemer report runs/digits
      bessemer report runs/digits runs/bang-digits --out compare.html

    The page needs no network: it can be mailed, printed and read on a phone.
    """
    path = write_report(list(runs), out or runs[0] / "report.html")
    Console().print(f"Wrote {path}", markup=False, soft_wrap=True)
