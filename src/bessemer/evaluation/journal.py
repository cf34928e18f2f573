"""What an evaluation has found so far, kept on disk: a killed one goes on where it was.

One file per attack and batch, each whole or absent. Each says which question about which images it answers, and counts
for no other. A first file holds the question; another one in the same folder begins anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bessemer.errors import FileError, RunInUseError
from bessemer.records import read_record, write_record

_QUESTION = "question.json"
_LOCK = ".lock"
_PART = re.compile(r"\d{6}-.+\.json")


class Journal:
    """The parts found so far. Without a folder, or before a question is asked, nothing is kept."""

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._question = ""
        self._lock: FileLock | None = None

    def open(self) -> dict[str, Any]:
        """Be the only one who begins anew here, until `close`; returns the question that was last asked, if any.

        Raises `RunInUseError` where another evaluation is at work, `FileError` where nothing can be written.
        """
        if self._folder is None:
            return {}
        self._lock = _locked(self._folder)
        return _recalled(self._folder / _QUESTION) or {}

    def ask(self, question: dict[str, Any]) -> None:
        """What is kept from now on answers this; who holds the journal clears away what answers another question."""
        if self._folder is None:
            return
        if self._lock is not None and _recalled(self._folder / _QUESTION) != question:
            for path in self._folder.iterdir():
                if _PART.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            write_record(self._folder / _QUESTION, question)
        self._question = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()

    def recall(self, batch: int, part: str, images: str) -> dict[str, Any] | None:
        """What was found for a batch, if it was for these images and this question."""
        if self._folder is None or not self._question:
            return None
        kept = _recalled(self._place(batch, part)) or {}
        return kept.get("found") if kept.get("of") == [self._question, images] else None

    def keep(self, batch: int, part: str, images: str, found: dict[str, Any]) -> None:
        """Write down what was found for a batch. Raises `FileError`."""
        if self._folder is not None and self._question:
            write_record(self._place(batch, part), {"of": [self._question, images], "found": found})

    def close(self) -> None:
        """Let another evaluation write here."""
        if self._lock is not None:
            self._lock.release()

    def _place(self, batch: int, part: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{batch:06d}-{part}.json"


def _locked(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as problem:
        raise RunInUseError(
            f"another process is at the same evaluation ({folder}); wait for its end, or name another place"
        ) from problem
    except OSError as problem:
        raise FileError(f"{folder} cannot be written: {problem.strerror}") from problem
    return lock


def _recalled(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none, or a damaged one: it is then found again."""
    try:
        return read_record(path) if path.exists() else None
    except FileError:
        return None
