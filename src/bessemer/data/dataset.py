"""Images and labels as two tensors, and the three splits of a data set.

Pixels are kept as they came, in uint8, on the device; a batch is a gather and one conversion to floats in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bessemer.errors import DataError, ImagesError, LabelsError


@dataclass(frozen=True)
class Split:
    """Some labelled images: uint8 grey levels or floats in [0, 1], shape (N, C, H, W), and int64 labels, shape (N,).

    Raises `ImagesError` or `LabelsError` where the two do not fit each other or their ranges.
    """

    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        if self.images.dim() != 4:
            raise ImagesError(f"images should have the shape (N, C, H, W), not {tuple(self.images.shape)}")
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise ImagesError(f"images should be uint8 grey levels or floats in [0, 1], not {self.images.dtype}")
        if self.images.is_floating_point() and self.images.numel():
            _require_pixels(self.images)
        if self.labels.shape != self.images.shape[:1] or self.labels.is_floating_point():
            raise LabelsError(
                f"{len(self.images)} images need {len(self.images)} whole-number labels, "
                f"not {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if len(self.labels) and self.labels.min() < 0:
            raise LabelsError(f"labels count the classes from 0, but one is {int(self.labels.min())}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def at(self, index: Int[Tensor, " k"] | slice) -> tuple[Float[Tensor, "k c h w"], Int[Tensor, " k"]]:
        """The images at some places, as floats in [0, 1], and their labels."""
        return as_floats(self.images[index]), self.labels[index]

    def read(self, asked: Iterable[tuple[Int[Tensor, " k"], int]]) -> Iterator[Float[Tensor, "k c h w"]]:
        """The images of one batch after the other, as training reads them: each is asked for by places and a seed."""
        for index, _ in asked:
            yield as_floats(self.images[index])

    def sample(self) -> UInt8[Tensor, "k c h w"] | Float[Tensor, "k c h w"]:
        """Images that stand for all when statistics are learned of them; here all of them."""
        return self.images

    def first(self, count: int | None) -> Split:
        """The first `count` images; all of them for None."""
        return self if count is None else Split(self.images[:count], self.labels[:count])

    def to(self, device: torch.device | str) -> Split:
        """The same images on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three splits and the names of the classes. Test images decide nothing during training."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for split in (self.train, self.validation, self.test):
            if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(self.classes):
                raise DataError(
                    f"{self.name}: labels run from {int(split.labels.min())} to {int(split.labels.max())}, "
                    f"but there are {len(self.classes)} classes"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.image_shape

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("train", "validation", "test")})


def as_floats(images: Tensor) -> Tensor:
    """Grey levels 0 … 255 as floats in [0, 1]; floats as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def from_pair(images: Tensor | np.ndarray, labels: Tensor | np.ndarray, classes: int | None = None) -> Split:
    """A split from images and labels in memory, as torch tensors or NumPy arrays.

    images: uint8 grey levels or floats in [0, 1], shape (N, C, H, W); NumPy's double precision becomes single. labels:
    whole numbers, shape (N,), below `classes` where that is given.
    Raises `ImagesError` or `LabelsError` where they are anything else.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.array(images, np.float32 if images.dtype.kind == "f" else images.dtype))
    if isinstance(labels, np.ndarray):
        labels = torch.from_numpy(np.array(labels, np.int64 if labels.dtype.kind in "iu" else labels.dtype))
    for what, value, problem in (("images", images, ImagesError), ("labels", labels, LabelsError)):
        if not isinstance(value, Tensor):
            raise problem(f"{what} should be a torch tensor or a NumPy array, not a {type(value).__name__}")
    split = Split(images, labels if labels.is_floating_point() else labels.long())
    if classes is not None and len(split) and split.labels.max() >= classes:
        raise LabelsError(f"labels should lie in 0 … {classes - 1}, but one is {int(split.labels.max())}")
    return split


def _require_pixels(images: Tensor) -> None:
    """Refuse (`ImagesError`) floats outside [0, 1], and say what is the likely cause."""
    low, high = (value.item() for value in torch.aminmax(images))
    if math.isnan(low):
        raise ImagesError(
            "images hold NaN; the likely cause is normalisation before the model by a standard deviation of 0"
        )
    if low >= 0 and 2 < high <= 255:
        raise ImagesError(
            f"images should lie in [0, 1] but run from {low:.3g} to {high:.3g}; divide grey levels by 255"
        )
    if not (low >= 0 and high <= 1):
        raise ImagesError(
            f"images should lie in [0, 1] but run from {low:.3g} to {high:.3g}; the likely cause is normalisation: "
            "pass raw pixels and let the model's first layer, bessemer.models.Normalize, subtract the mean"
        )


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    """A split from NumPy arrays. `name` is for the error."""
    try:
        return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))
    except (ImagesError, LabelsError) as problem:
        raise DataError(f"{name}: {problem}") from problem
