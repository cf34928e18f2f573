"""Which of a million image files cannot be read: looked through once, and remembered.

Every file is decoded (`decoding.fault`), in threads, since Pillow lets go of the interpreter lock. What was found is
kept in the user's cache class by class, with a digest of the files' names, sizes and times: a class is looked through
again when one of them changes, and a look that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from bessemer.data import places
from bessemer.data.decoding import fault
from bessemer.data.download import Progress, silent
from bessemer.errors import FileError
from bessemer.records import read_record, write_record

EVERY = 30  # seconds, after which what was found is written down
LOOK = 1  # counts the ways files were ever looked at


def kept_at(part: Path) -> Path:
    """The file that remembers what was found in a folder PART/CLASS/…"""
    return places.cache() / "unreadable" / f"{part.name}-{hashlib.sha256(str(part).encode()).hexdigest()[:16]}.json"


def unreadable_files(
    part: Path, classes: Sequence[str], files: Sequence[Sequence[str]], progress: Progress = silent
) -> dict[str, dict[str, str]]:
    """Why files of a split cannot be read: by class and by name; classes without any are left out.

    files: the names in each class. progress: is told how many of the split's files are known.
    """
    kept = kept_at(part)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock: Any = FileLock(kept.with_suffix(".lock"))  # of several processes, one looks and the others read
    except OSError:
        lock = nullcontext()
    with lock:
        known, done, total = _remembered(kept), 0, sum(map(len, files))
        written = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for name, own in zip(classes, files, strict=True):
                digest = _digest(part / name, own)
                if known.get(name, {}).get("files") != digest:
                    faults = threads.map(lambda file, name=name: fault(part / name / file), own)
                    found = {file: why for file, why in zip(own, faults, strict=True) if why}
                    known[name] = {"files": digest, "unreadable": found}
                    if time.monotonic() - written > EVERY:
                        _remember(kept, known)
                        written = time.monotonic()
                done += len(own)
                progress(str(part), done, total)
        known = {name: known[name] for name in classes}
        _remember(kept, known)
    return {name: seen["unreadable"] for name, seen in known.items() if seen["unreadable"]}


def _digest(folder: Path, names: Sequence[str]) -> str:
    """What tells whether a class has changed."""
    digest = hashlib.sha256(f"{LOOK}".encode())
    for name in names:
        try:
            seen = os.stat(folder / name)
            digest.update(f"{name} {seen.st_size} {seen.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError as problem:
            digest.update(f"{name} {problem.strerror}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _remembered(kept: Path) -> dict[str, Any]:
    try:
        return read_record(kept)
    except FileError:
        return {}  # not there, or not whole: looked at again


def _remember(kept: Path, known: dict[str, Any]) -> None:
    try:
        write_record(kept, known)
    except FileError as problem:
        warnings.warn(f"{problem}; the images are looked through again next time", stacklevel=4)
