"""What several commands take, and what Ctrl-C becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from bessemer.errors import BessemerError, UsageError


class Interrupted(BessemerError):  # noqa: N818  (nothing went wrong)
    """Ctrl-C, or a request to end; the message says how to go on."""

    exit_code = 130


def usable(device: str) -> str:
    """The device, if this machine has it. Raises `UsageError`."""
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: {device!r} is none that Bessemer computes on; write cpu, cuda or cuda:1")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: torch finds no CUDA device on this machine; write cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UsageError(f"--device: there is no {device}; the last CUDA device of this machine is cuda:{last}")
    return device


Device = Annotated[str, typer.Option(metavar="DEVICE", callback=usable, help="cpu, cuda, cuda:1, …")]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Where data sets are looked for first.")]
