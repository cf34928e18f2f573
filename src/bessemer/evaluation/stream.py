"""The images of an evaluation as they come: from tensors, arrays, data sets, loaders, or anything that yields pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bessemer import data as sources
from bessemer.data import Dataset, Split
from bessemer.errors import UsageError

Pairs = Split | Dataset | tuple[Any, Any] | Iterable[tuple[Any, Any]]


def length(data: Pairs, samples: int | None) -> int:
    """How many images there are to judge; 0 where only reading on will tell."""
    if isinstance(data, Dataset):
        data = data.test
    total = 0
    if isinstance(data, Split):
        total = len(data)
    elif isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "__len__"):
        total = len(data[0])
    return min(total, samples) if samples is not None else total


def splits(data: Pairs, samples: int | None) -> Iterator[Split]:
    """The images in the pieces in which they come, `samples` of them at most."""
    if isinstance(data, Dataset):
        data = data.test
    pairs: Iterable[Any] = [data] if isinstance(data, Split | tuple) else data
    left = samples
    for pair in pairs:
        split = pair if isinstance(pair, Split) else _split(pair)
        if left is not None:
            split = split.first(left)
            left -= len(split)
        yield split
        if left == 0:
            return


def _split(pair: Any) -> Split:
    try:
        images, labels = pair
    except (TypeError, ValueError):
        raise UsageError(
            f"data should be (images, labels), a data set, or an iterable of such pairs, not {type(pair).__name__}"
        ) from None
    return sources.from_pair(images, labels)
