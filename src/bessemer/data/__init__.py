"""Where images come from: one file a source, one row in `_SOURCES`.

A source's file holds `load(root, **settings)`, which returns a `Dataset`, and `ABOUT`, what is known of it beforehand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bessemer.data import cifar10, digits, download, folder, image_folder, mnist, places
from bessemer.data.about import About
from bessemer.data.batches import Augmentation, Batch, Batches
from bessemer.data.dataset import Dataset, Split, as_floats, from_pair
from bessemer.data.lazy import LazySplit
from bessemer.errors import DataError, UsageError, unknown

_SOURCES = (digits, mnist, cifar10, folder, image_folder)

SOURCES: dict[str, Callable[..., Dataset]] = {source.ABOUT.name: source.load for source in _SOURCES}
ABOUT: dict[str, About] = {source.ABOUT.name: source.ABOUT for source in _SOURCES}

__all__ = [
    "ABOUT",
    "SOURCES",
    "About",
    "Augmentation",
    "Batch",
    "Batches",
    "Dataset",
    "LazySplit",
    "Split",
    "as_floats",
    "check",
    "find",
    "from_pair",
    "get",
    "load",
]


def _known(name: str) -> About:
    """What is known of the data set of that name. Raises `UsageError` for an unknown name."""
    if name not in ABOUT:
        raise unknown("data set", name, ABOUT)
    return ABOUT[name]


def load(name: str, data_dir: Path | None = None, **settings: Any) -> Dataset:
    """The data set of that name.

    Raises `UsageError` for an unknown name or setting, `DataError` where its files are missing or not right.
    """
    source = SOURCES[_known(name).name]
    allowed = list(inspect.signature(source).parameters)[1:]
    for setting in settings:
        if setting not in allowed:
            raise unknown(f"setting of the data set {name}", setting, allowed or ["none"])
    return source(data_dir, **settings)


def find(name: str, data_dir: Path | None = None) -> Path | None:
    """The folder with the files of a data set; None for one that is embedded or lies where a setting says.

    Raises `DataError`, with every place looked at, where there is none.
    """
    return places.find(_known(name), data_dir) if _known(name).folders else None


def check(name: str, data_dir: Path | None = None) -> str:
    """One line that says how a data set was found to be as published. Raises `DataError` where it is not."""
    if not _known(name).training:
        raise UsageError(f"{name}: nothing is published to compare with; it is checked whenever it is loaded")
    where = find(name, data_dir)
    verdict = _known(name).verify(load(name, data_dir))
    altered = _known(name).altered(where) if where else []
    if altered:
        raise DataError(
            f"{name}: {', '.join(altered)} in {where} differ from the published files though their counts agree; "
            f"delete them and run `bessemer data get {name}`"
        )
    return f"{name}: {verdict}" + (f" ({where})" if where else "")


def get(name: str, data_dir: Path | None = None, progress: download.Progress = download.silent) -> str:
    """Download a data set into `data_dir` (or the first place where data is looked for) and check it.

    What is there already is only checked. Returns the line of `check`.

    Raises `UsageError` where there is nothing to download, `DataError` where no address gives the published files.
    """
    if not _known(name).downloads:
        raise UsageError(f"{name}: there is nothing to download: {_known(name).what}")
    within = places.roots() if data_dir is None else [Path(data_dir).expanduser()]
    if places.locate(_known(name), within):
        try:
            return check(name, data_dir)
        except DataError:
            pass  # what is missing or damaged there is downloaded again
    download.get(_known(name), within[0] / _known(name).folders[0], progress)
    return check(name, data_dir)
