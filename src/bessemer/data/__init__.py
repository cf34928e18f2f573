"""Where images come from: one file a source, one row in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bessemer.data import digits
from bessemer.data.batches import Augmentation, Batch, Batches
from bessemer.data.dataset import Dataset, Split, as_floats
from bessemer.errors import unknown

SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": digits.load,
}

__all__ = ["SOURCES", "Augmentation", "Batch", "Batches", "Dataset", "Split", "as_floats", "load"]


def load(name: str, data_dir: Path | None = None, **settings: Any) -> Dataset:
    """The data set of that name. Raises `UsageError` for an unknown name, `DataError` where its files are not right."""
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    return SOURCES[name](data_dir, **settings)
