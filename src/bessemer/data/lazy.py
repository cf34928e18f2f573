"""Splits whose images stay in their files: what is asked for is decoded, and forgotten again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bessemer import randomness
from bessemer.data.dataset import Split, as_floats
from bessemer.data.decoded_ahead import decoded_ahead
from bessemer.data.decoding import ATTEMPTS, DRAWS, Pixels, centre_square, random_square

SAMPLE = 2000  # images that statistics are learned of


@dataclass(frozen=True)
class ImageFiles:
    """Images in the files FOLDER/CLASS/NAME. Indexing decodes them as test images, as (N, 3, size, size) bytes.

    owners: each file's class. names: as bytes in one array, since worker processes copy a million Python objects one by
    one. size, resize: see `centre_square`. threads: how many decode at once. remedy: what to do about a file that
    cannot be read.
    """

    folder: Path
    classes: tuple[str, ...]
    owners: npt.NDArray[np.int64]
    names: npt.NDArray[np.bytes_]
    size: int
    resize: int
    threads: int
    remedy: str

    def __len__(self) -> int:
        return len(self.names)

    def path(self, place: int) -> Path:
        """The file of one image."""
        return self.folder / self.classes[self.owners[place]] / os.fsdecode(self.names[place])

    def only(self, places: Int[Tensor, " k"]) -> ImageFiles:
        """Some of the files."""
        return replace(self, owners=self.owners[places.numpy()], names=self.names[places.numpy()])

    def places(self, index: Tensor | slice) -> Int[Tensor, " k"]:
        """What an index, a mask or a slice stands for, as numbers from 0 on."""
        return torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]

    def __getitem__(self, index: Tensor | slice) -> UInt8[Tensor, "k 3 h w"]:
        paths = [self.path(place) for place in self.places(index).tolist()]
        with ThreadPoolExecutor(max(self.threads, 1)) as threads:
            return self._stacked(
                threads.map(lambda path: centre_square(path, self.size, self.resize, self.remedy), paths), len(paths)
            )

    def cropped(self, index: Int[Tensor, " k"], seed: int) -> UInt8[Tensor, "k 3 h w"]:
        """Training images: a random part of each (`random_square`), drawn from the seed and the image's place."""
        draws = randomness.uniform((ATTEMPTS, DRAWS), seed, index, stream=11).tolist()
        places = zip(index.tolist(), draws, strict=True)
        parts = (random_square(self.path(place), self.size, drawn, self.remedy) for place, drawn in places)
        return self._stacked(parts, len(index))

    def _stacked(self, squares: Iterable[Pixels], count: int) -> UInt8[Tensor, "k 3 h w"]:
        images = np.empty((count, 3, self.size, self.size), np.uint8)
        for image, square in zip(images, squares, strict=True):
            image[:] = square.transpose(2, 0, 1)
        return torch.from_numpy(images)


@dataclass(frozen=True)
class LazySplit(Split):
    """Labelled images in files; nothing is decoded before it is asked for.

    `at`, `first` and indexing `images` see test images, `read` training images. The labels stay on the CPU, where files
    are chosen; what is read goes to `device`. workers: processes that decode what `read` will return.
    Raises, wherever images are read, `DataError` with the name of a file that cannot be.
    """

    images: ImageFiles  # type: ignore[assignment]  # takes an index as a tensor does, and gives a tensor
    device: torch.device | str = "cpu"
    workers: int = 0

    def __post_init__(self) -> None:
        """Files are found out when they are read."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.images.size, self.images.size

    def at(self, index: Int[Tensor, " k"] | slice) -> tuple[Float[Tensor, "k c h w"], Int[Tensor, " k"]]:
        """The images at some places as test images, as floats in [0, 1], and their labels."""
        labels = self.labels[self.images.places(index)]
        return as_floats(self.images[index].to(self.device)), labels.to(self.device)

    def read(self, asked: Iterable[tuple[Int[Tensor, " k"], int]]) -> Iterator[Float[Tensor, "k c h w"]]:
        """Training images, one batch after the other, each cut out of its file by the batch's seed."""
        on_gpu = torch.device(self.device).type == "cuda"
        for images in decoded_ahead(self.images.cropped, asked, self.workers, page_locked=on_gpu):
            yield as_floats(images.to(self.device, non_blocking=True))

    def sample(self) -> UInt8[Tensor, "k c h w"]:
        """At most `SAMPLE` test-sized images that stand for all, every so many-th of them, so of all classes alike."""
        count = min(SAMPLE, len(self))
        return self.images[torch.arange(count) * len(self) // max(count, 1)].to(self.device)

    def first(self, count: int | None) -> LazySplit:
        """The first `count` images; all of them for None."""
        return self if count is None else self.only(torch.arange(len(self))[:count])

    def only(self, places: Int[Tensor, " k"]) -> LazySplit:
        """Some of the images, still in their files."""
        return replace(self, images=self.images.only(places), labels=self.labels[places])

    def to(self, device: torch.device | str) -> LazySplit:
        """The same images, which go to a device when they are read."""
        return replace(self, device=device)
