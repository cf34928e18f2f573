"""What is known of a data set before it is loaded: where its files lie and come from, what a right copy holds.

Each source that others published keeps one `About` beside its `load`; searching, downloading, listing and checking read
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bessemer.data.dataset import Dataset, Split
from bessemer.errors import DataError


@dataclass(frozen=True)
class Download:
    """One file of a publisher. `addresses` are tried in turn; `md5` is that of the file as it is served."""

    file: str
    md5: str
    addresses: tuple[str, ...]


def _unaltered(folder: Path) -> list[str]:
    return []


@dataclass(frozen=True)
class About:
    """A data set, described.

    training, test: how many images; a validation part is counted as training. per_class: images of each class, all
    splits together. mean, deviation: of the training images' channels in [0, 1], as published (to four decimals).
    folders: where below a data directory its files may lie. marks: any of these files in such a folder says that it
    is there. files: which files, and from where, for a person who carries them there. altered: names of files in a
    folder whose content is not the published one, where digests of the content are known.
    """

    name: str
    what: str
    files: str = ""
    training: int = 0
    test: int = 0
    per_class: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    folders: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    downloads: tuple[Download, ...] = ()
    altered: Callable[[Path], list[str]] = _unaltered

    def verify(self, dataset: Dataset) -> str:
        """One line that says what was compared; raises `DataError` where the images are not the published ones."""
        training = (dataset.train, dataset.validation)
        counts = ("training", sum(map(len, training)), self.training), ("test", len(dataset.test), self.test)
        for part, held, published in counts:
            if held != published:
                raise DataError(f"{self.name}: {held:,} {part} images where {published:,} are published")
        per_class = _counts([split.labels for split in (*training, dataset.test)], len(self.per_class))
        if per_class != self.per_class:
            raise DataError(
                f"{self.name}: its classes hold {list(per_class)} images where {list(self.per_class)} are published; "
                "the labels belong to other images"
            )
        compared = f"{self.training:,} training and {self.test:,} test images, {len(self.per_class)} classes"
        if not self.mean:
            return f"{compared}: as published"
        mean, deviation = moments(*training)
        for what, found, stated in (("mean", mean, self.mean), ("deviation", deviation, self.deviation)):
            if any(abs(one - other) > 1e-4 for one, other in zip(found, stated, strict=True)):
                raise DataError(
                    f"{self.name}: the {what} of the training images is {_numbers(found)} where {_numbers(stated)} "
                    "is published; these are other images"
                )
        return f"{compared}, mean {_numbers(mean)}, deviation {_numbers(deviation)}: as published"


def moments(*splits: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of uint8 splits, in [0, 1]; exact, by counting."""
    channels = splits[0].images.shape[1]
    means, deviations = [], []
    for channel in range(channels):
        levels = torch.tensor(_counts([split.images[:, channel].flatten() for split in splits], 256)).double()
        grey = torch.arange(256).double() / 255
        mean = (levels @ grey / levels.sum()).item()
        means.append(mean)
        deviations.append((levels @ (grey - mean).square() / levels.sum()).sqrt().item())
    return tuple(means), tuple(deviations)


def _counts(parts: list[Tensor], kinds: int) -> tuple[int, ...]:
    """How often each of 0 … kinds − 1 occurs."""
    return tuple(sum(torch.bincount(part, minlength=kinds) for part in parts).tolist())  # type: ignore[union-attr]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
