"""An endless stream of batches, and how they are augmented.

Every draw (the order of an epoch, a crop, a flip, noise) is keyed by the run's seed and the place in the stream
(`bessemer.randomness`), so the whole state of the stream is how many images have been read: a resumed run continues
with the very same batches, and processes that share a stream need exchange nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, tee

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from bessemer import randomness
from bessemer.data import colours
from bessemer.data.dataset import Split
from bessemer.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """What a training method gets: float images in [0, 1], labels, and what random draws are keyed by.

    index: each image's place in its data set. seed: from the run's seed and the step. iteration: how many batches came
    before. adversarial: what an attack made of the images; None where none has.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    seed: int
    iteration: int = 0
    adversarial: Float[Tensor, "n c h w"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, number: int, parts: int) -> Batch:
        """Every `parts`-th image from `number` on: what is first in the batch is first in each of its parts."""
        if parts == 1:
            return self
        rows = slice(number, None, parts)
        adversarial = None if self.adversarial is None else self.adversarial[rows]
        return replace(
            self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows], adversarial=adversarial
        )


@dataclass(frozen=True)
class Augmentation:
    """Batched changes to training images: each image draws its own.

    crop: shift by up to so many pixels each way, zeros coming in. flip: mirror half of the images left to right.
    jitter: brightness, contrast and saturation each change by a factor of up to 1 ± so much. lighting: standard
    deviation of the light added along ImageNet's principal colours (`colours` has the formulas). noise: standard
    deviation of Gaussian noise in [0, 1] units. Pixels are clipped to [0, 1].
    """

    crop: int = 0
    flip: bool = False
    noise: float = 0.0
    jitter: float = 0.0
    lighting: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0 or self.noise < 0:
            raise UsageError(f"crop and noise cannot be negative, found {self.crop} and {self.noise}")
        if not 0 <= self.jitter <= 1 or self.lighting < 0:
            raise UsageError(
                f"jitter should lie in 0 … 1 and lighting cannot be negative, found {self.jitter} and {self.lighting}"
            )

    def __call__(self, images: Tensor, seed: int, index: Tensor) -> Tensor:
        """The changed images."""
        n, channels, height, width = images.shape
        if self.flip:
            mirrored = randomness.integers(2, seed, index, stream=1).bool()
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.crop:
            down = randomness.integers(2 * self.crop + 1, seed, index, stream=2)[:, None] + torch.arange(
                height, device=images.device
            )
            right = randomness.integers(2 * self.crop + 1, seed, index, stream=3)[:, None] + torch.arange(
                width, device=images.device
            )
            one = torch.arange(n, device=images.device)[:, None, None, None]
            channel = torch.arange(channels, device=images.device)[:, None, None]
            images = pad(images, [self.crop] * 4)[one, channel, down[:, None, :, None], right[:, None, None, :]]
        if self.jitter or self.lighting:
            images = colours.changed(images, self.jitter, self.lighting, seed, index)
        if self.noise:
            noise = randomness.normal(tuple(images.shape[1:]), seed, index, stream=4)
            images = (images + self.noise * noise).clamp(0, 1)
        return images


class Batches:
    """Batches of `size` images without end; an epoch that does not divide evenly runs on into the next.

    shuffle: a new order every epoch; without it the images come in file order, as Caffe reads them. place: this
    process's number and how many share each batch; it takes every so many-th image of it.
    `position` counts the images read so far, by all processes: it is the whole state.
    Raises `UsageError` for a size that does not fit the split or cannot be shared out evenly.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int = 0,
        shuffle: bool = True,
        augmentation: Augmentation | None = None,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        if not 1 <= size <= len(split):
            raise UsageError(f"batch_size: {size} does not fit a training set of {len(split)} images")
        if size % place[1]:
            raise UsageError(
                f"batch_size: {size} images cannot be shared out evenly among {place[1]} processes; "
                f"take {size // place[1] * place[1] or place[1]}"
            )
        self.split, self.size = split, size
        self.augmentation = augmentation or Augmentation()
        self.position = 0
        self._order = _Order(len(split), size, seed, shuffle, place, split.labels.device)
        self._coming: Iterator[tuple[tuple[Tensor, int], Tensor]] | None = None
        self._reached = -1  # the position that `_coming` goes on from

    def next(self) -> Batch:
        """The batch at `position`, which then moves on."""
        if self._coming is None or self._reached != self.position:
            asked, own = tee(self._order.asked(self.position))
            self._coming = zip(own, self.split.read(asked), strict=True)
        self._reached = -1  # what fails is asked for anew
        (index, seed), images = next(self._coming)
        labels, index = self.split.labels[index].to(images.device), index.to(images.device)
        iteration = self.position // self.size
        self.position = self._reached = self.position + self.size
        return Batch(self.augmentation(images, seed, index), labels, index, seed, iteration)


class _Order:
    """Which images the batches hold, as a function of the position.

    It does not know the stream: what reads ahead holds this, and must end, workers and all, when the stream is dropped.
    """

    def __init__(
        self, length: int, size: int, seed: int, shuffle: bool, place: tuple[int, int], device: torch.device
    ) -> None:
        self.length, self.size, self.seed, self.shuffle = length, size, seed, shuffle
        self.place, self.device = place, device
        self._newest: tuple[int, Tensor] = (-1, torch.empty(0))

    def asked(self, position: int) -> Iterator[tuple[Tensor, int]]:
        """The images of the batches from a position on, and their seeds."""
        for start in count(position, self.size):
            epoch, offset = divmod(start, self.length)
            index = self._epoch(epoch)[offset : offset + self.size]
            if len(index) < self.size:
                index = torch.cat([index, self._epoch(epoch + 1)[: self.size - len(index)]])
            yield index[self.place[0] :: self.place[1]], randomness.subseed(self.seed, 1, start)

    def _epoch(self, epoch: int) -> Tensor:
        """The order of one epoch; the newest is kept."""
        if self._newest[0] != epoch:
            if self.shuffle:
                generator = torch.Generator().manual_seed(randomness.subseed(self.seed, 0, epoch))
                order = torch.randperm(self.length, generator=generator).to(self.device)
            else:
                order = torch.arange(self.length, device=self.device)
            self._newest = (epoch, order)
        return self._newest[1]
