"""Where data is looked for: the directory that was named, then `$BESSEMER_DATA`, then the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from bessemer.data.about import About
from bessemer.errors import DataError, UsageError


def cache() -> Path:
    """The user's cache folder for Bessemer: below `$XDG_CACHE_HOME`, or else `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "bessemer"


def roots(data_dir: Path | None = None) -> list[Path]:
    """The data directories, in the order they are searched. Raises `UsageError` where `data_dir` is none."""
    named = os.environ.get("BESSEMER_DATA")
    found = [Path(named).expanduser()] if named else []
    if data_dir is not None:
        data_dir = Path(data_dir).expanduser()
        if not data_dir.is_dir():
            raise UsageError(f"--data-dir: there is no folder {data_dir}; name the one that holds the data sets")
        found.insert(0, data_dir)
    return [*found, cache() / "data"]


def locate(about: About, places: list[Path]) -> Path | None:
    """The first folder below these places with files of the data set; None where there is none."""
    for place in places:
        for folder in about.folders:
            if any(os.path.isfile(place / folder / mark) for mark in about.marks):
                return place / folder
    return None


def find(about: About, data_dir: Path | None = None) -> Path:
    """The folder with the files of a data set. Raises `DataError`, with every place looked at, where there is none."""
    places = roots(data_dir)
    found = locate(about, places)
    if found is None:
        within = " or ".join(folder for folder in about.folders if folder != ".")
        raise DataError(
            f"{about.name} is not in {' nor in '.join(map(str, places))} (nor there in {within}); "
            f"`bessemer data get {about.name}` downloads it, or put {about.files} into {places[0] / about.folders[0]}"
        )
    return found
