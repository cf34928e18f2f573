"""What several commands take, and what Ctrl-C becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bessemer.errors import BessemerError

Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, …")]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Where data sets are looked for first.")]


class Interrupted(BessemerError):  # noqa: N818  (nothing went wrong)
    """Ctrl-C, or a request to end; the message says how to go on."""

    exit_code = 130
