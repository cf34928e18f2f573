"""What an evaluation has found so far, kept on disk: a killed one goes on where it was.

One file per attack and batch, each whole or absent. A first file says which question they answer; another question in
the same folder begins anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bessemer.errors import FileError
from bessemer.records import read_record, write_record

_QUESTION = "question.json"


class Journal:
    """The parts found so far. Without a folder nothing is kept."""

    def __init__(self, folder: str | Path | None, question: dict[str, Any], begins: bool = True) -> None:
        """`begins`: whether this process may clear a folder that answers another question (one of several may)."""
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            return
        if begins and _recalled(self._folder / _QUESTION) != question:
            if (self._folder / _QUESTION).exists():
                shutil.rmtree(self._folder)
            write_record(self._folder / _QUESTION, question)

    def recall(self, batch: int, part: str) -> dict[str, Any] | None:
        """What was found for a batch, if it was."""
        return None if self._folder is None else _recalled(self._place(batch, part))

    def keep(self, batch: int, part: str, found: dict[str, Any]) -> None:
        """Write down what was found for a batch. Raises `FileError`."""
        if self._folder is not None:
            write_record(self._place(batch, part), found)

    def _place(self, batch: int, part: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{batch:06d}-{part}.json"


def _recalled(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none, or a damaged one: it is then found again."""
    try:
        return read_record(path) if path.exists() else None
    except FileError:
        return None
