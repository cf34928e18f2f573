"""Files that appear whole or not at all, and are known again by their digest.

A file is written under a temporary name, flushed to disk and renamed; a reader sees the old one or the new one. Every
JSON record carries the SHA-256 of its own content, and reading checks it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from bessemer.errors import FileError


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step. Raises `FileError`; what stood there before is then still there."""
    handle, temporary = -1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as problem:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise _explained(problem, path, len(content)) from problem
    except BaseException:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON object together with its digest."""
    body = json.dumps(record, separators=(",", ":"), allow_nan=False)
    write_whole(path, _sealed(body))


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that `write_record` wrote. Raises `FileError` where it is missing, cut off or altered."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise FileError(f"{path} cannot be read: {problem.strerror}") from problem
    try:
        text = content.decode()
        body = text[text.index('"record":') + len('"record":') : text.rindex("}")]
        # sealing it again and comparing leaves no byte unchecked, the last newline included
        if content != _sealed(body):
            raise _damaged(path, content)
        return dict(json.loads(body))
    except (ValueError, TypeError) as problem:
        raise _damaged(path, content) from problem


def _sealed(body: str) -> bytes:
    """The file's bytes for a JSON text: the text with its digest before it."""
    return f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}","record":{body}}}\n'.encode()


def _damaged(path: Path, content: bytes) -> FileError:
    try:
        whole = json.loads(content)
    except ValueError:
        whole = {"record": None}
    if isinstance(whole, dict) and not {"record", "sha256"} & whole.keys():  # nothing to be thrown away
        return FileError(f"{path} is JSON, but no record with its digest; name a run, or a file in its folder records/")
    return FileError(f"{path} is damaged (its content does not match its digest); delete it and make it again")


def _explained(problem: OSError, path: Path, size: int) -> FileError:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return FileError(
            f"no space left to write {path} ({size / 1e6:.1f} MB); what was written before is intact: "
            "free some space and repeat the command (training: with --resume)"
        )
    return FileError(f"{path} cannot be written: {problem.strerror}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; not every system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
