"""Bringing a data set from its publisher: with progress, going on where it stopped, and checked by digest.

A file arrives under its name with `.part` behind it and gets its own name when its MD5 is the published one; what a cut
connection left is kept and completed by the next attempt (HTTP's Range). An archive is then unpacked (regular files
only, each under its own last name) and removed.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import ssl
import tarfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

from bessemer.data.about import About, Download
from bessemer.errors import DataError, FileError
from bessemer.records import write_whole

ATTEMPTS, TIMEOUT, CHUNK = 3, 30, 1 << 18
_NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


class Progress(Protocol):
    """Is told how many bytes of a file are here, and how many there will be, if the server says."""

    def __call__(self, file: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes."""


def silent(file: str, done: int, total: int | None) -> None:
    """Progress that nobody wants to see."""


def get(about: About, folder: Path, progress: Progress = silent) -> None:
    """Download a data set into its folder.

    Files that are there with the published digest are not downloaded again. Raises `DataError` where no address gives
    the published files, and says what to put where; `FileError` where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for download in about.downloads:
            file = folder / download.file
            problems = "" if file.is_file() and _md5(file) == download.md5 else _fetch(download, file, progress)
            if problems:
                raise DataError(
                    f"{about.name}: {download.file} could not be downloaded ({problems}); repeat the command to go on "
                    f"from there, or get {about.files} by other means and put them into {folder}"
                )
            if file.name.endswith(".tar.gz"):
                _unpack(file, folder)
    except (DataError, FileError):
        raise
    except OSError as problem:
        raise FileError(
            f"{folder} cannot be written: {problem.strerror or problem}; name another with --data-dir"
        ) from problem


def _fetch(download: Download, file: Path, progress: Progress) -> str:
    """Put the published file at `file`; returns why no address could, or nothing."""
    part = file.with_name(f"{file.name}.part")
    problems = []
    for address in download.addresses:
        for _ in range(ATTEMPTS):
            before = _size(part)
            problem = _receive(address, part, progress)
            if problem:
                if _size(part) <= before:
                    break
            else:
                found = _md5(part)
                if found == download.md5:
                    os.replace(part, file)
                    return ""
                part.unlink()
                problem = f"its MD5 is {found}, not the published {download.md5}"
                if not before:  # all of it came from there: it would come again
                    break
        problems.append(f"{urlsplit(address).netloc}: {problem}")
    return "; ".join(problems)


def _receive(address: str, part: Path, progress: Progress) -> str:
    """Complete `part` from an address; returns what kept it from being whole, or nothing."""
    done, total, name = _size(part), None, part.stem
    headers = {"User-Agent": "bessemer"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT) as response:
            resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
            done = done if resumed else 0
            if response.headers["Content-Length"]:
                total = done + int(response.headers["Content-Length"])
            with part.open("ab" if resumed else "wb") as file:
                progress(name, done, total)
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    progress(name, done, total)
    except urllib.error.HTTPError as problem:
        problem.close()
        whole = problem.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and done
        return "" if whole else f"HTTP {problem.code}, {problem.reason}"
    except _NETWORK as problem:
        reason = getattr(problem, "reason", problem)
        return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)
    return "" if total in (None, done) else f"cut off after {done:,} of {total:,} bytes"


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name, content = PurePosixPath(member.name).name, tar.extractfile(member) if member.isfile() else None
            if content is not None and name not in ("", ".."):
                write_whole(folder / name, content.read())
    archive.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
