"""Your own images: PATH/train/CLASS/*.png, PATH/val/CLASS/*.png and, if you have it, PATH/test/CLASS/*.png.

png, jpg, jpeg and webp files; the classes are the folders' names in alphabetical order. Where there is no `test`, `val`
is the test split (nothing may be chosen by it), and a tenth of each class of `train`, always the same images, is held
out to validate. For evaluation alone, `PATH/CLASS/*.png` is enough: every image is then a test image. Test and
validation images come in turn from all classes, so that the first few stand for all of them.

Images are turned upright as their camera says, lose their transparency, and become RGB unless every one of them is
grey. `size` shrinks or enlarges each until it covers a square of so many pixels, and cuts out the middle. What was
decoded is kept in the user's cache until a file or a setting changes.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bessemer.data import class_folders, places
from bessemer.data.about import About
from bessemer.data.dataset import Dataset, Split
from bessemer.data.decoding import Pixels, opened, plain, unreadable
from bessemer.errors import DataError, UsageError
from bessemer.records import write_whole

DECODER = 1  # counts the ways files were ever decoded: what an older way kept is not used


def load(root: Path | None = None, path: str = "", size: int | None = None) -> Dataset:
    """The images below `path`: as it stands, or below `root` and where else data is looked for.

    size: side of the square that every image becomes, in pixels; None where they all have one size already.
    Raises `UsageError` for a wrong setting, `DataError` where a folder or an image is not as described above.
    """
    if not path:
        raise UsageError("path: the data set `folder` needs the folder that holds train/CLASS/… and val/CLASS/…")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UsageError(f"size: images cannot be {size} pixels wide; write the side of the square, such as 64")
    home = class_folders.home(path, root)
    if not (home / "train").is_dir() and class_folders.folders(home) and "val" not in class_folders.folders(home):
        return _only_tests(home, size)
    if not (home / "train").is_dir():
        part = next((part for part in ("val", "test") if (home / part).is_dir()), "")
        alone = f"name {home / part}" if part else f"put them in {home}/CLASS/*.png"
        raise DataError(
            f"{home / 'train'} is missing; put a folder of images for each class there: {home}/train/CLASS/*.png; "
            f"if there is nothing to train, {alone}"
        )
    classes = class_folders.classes(home / "train")
    present = [part for part in ("train", "val", "test") if part != "test" or (home / part).is_dir()]
    parts = [_files(home / part, classes) for part in present]
    files = [file for part in parts for file in part]
    lengths = [len(part) for part in parts]
    images = _images(home, files, size).split(lengths)
    labels = torch.tensor([file.label for file in files]).split(lengths)
    train, *others = (Split(*pair) for pair in zip(images, labels, strict=True))
    if len(others) == 2:
        return Dataset(home.name, classes, train, validation=_mixed(others[0]), test=_mixed(others[1]))
    held = class_folders.held_out(train.labels)
    return Dataset(
        home.name,
        classes,
        train=Split(train.images[~held], train.labels[~held]),
        validation=_mixed(Split(train.images[held], train.labels[held])),
        test=_mixed(others[0]),
    )


def _only_tests(home: Path, size: int | None) -> Dataset:
    """A data set without training images. Many such folders are called `val`: the one around it tells them apart."""
    classes = class_folders.classes(home)
    files = _files(home, classes)
    test = Split(_images(home, files, size), torch.tensor([file.label for file in files]))
    name = f"{home.parent.name}/{home.name}"
    return Dataset(name, classes, train=test.first(0), validation=test.first(0), test=_mixed(test))


def _mixed(split: Split) -> Split:
    """A split that lies class by class, in an order of which every first part holds the classes in their shares."""
    order = class_folders.in_turn(split.labels)
    return Split(split.images[order], split.labels[order])


@dataclass(frozen=True)
class _File:
    """An image file, and what tells whether it has changed."""

    path: Path
    label: int
    bytes: int
    changed: int


def _files(part: Path, classes: tuple[str, ...]) -> list[_File]:
    """The images of one split, class by class, in the order of their names."""
    files = []
    for label, names in enumerate(class_folders.files(part, classes)):
        for name in names:
            path = part / classes[label] / name
            try:
                seen = path.stat()
            except OSError as problem:
                raise unreadable(path, problem.strerror) from problem
            files.append(_File(path, label, seen.st_size, seen.st_mtime_ns))
    return files


def _images(home: Path, files: list[_File], size: int | None) -> Tensor:
    """All images as one tensor, from the cache where it is up to date."""
    key = hashlib.sha256(f"{home} {size}".encode()).hexdigest()[:16]
    content = hashlib.sha256(repr([DECODER, home, size, files]).encode()).hexdigest()
    kept = places.cache() / "folders" / f"{home.name}-{key}.safetensors"
    try:
        with safe_open(kept, "pt") as cached:
            if (cached.metadata() or {}).get("content") == content:
                return cached.get_tensor("images")
    except (OSError, SafetensorError):
        pass  # not there, or not whole: decoded again below
    images = _stacked([file.path for file in files], size)
    try:
        write_whole(kept, save({"images": images}, {"content": content}))
    except OSError as problem:
        warnings.warn(f"the decoded images were not kept, and are decoded again next time: {problem}", stacklevel=3)
    return images


def _stacked(paths: list[Path], size: int | None) -> Tensor:
    """Every image decoded, as (N, C, H, W)."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        decoded = list(threads.map(lambda path: _decode(path, size), paths))
    for path, pixels in zip(paths, decoded, strict=True):
        if pixels.shape[:2] != decoded[0].shape[:2]:
            raise DataError(
                f"size: {paths[0]} has {_sides(decoded[0])} pixels but {path} has {_sides(pixels)}; "
                "name the size that all of them should become, such as size = 64 (--size 64)"
            )
    if all(pixels.ndim == 2 for pixels in decoded):
        return torch.from_numpy(np.stack(decoded)[:, None])
    coloured = [np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels for pixels in decoded]
    return torch.from_numpy(np.ascontiguousarray(np.stack(coloured).transpose(0, 3, 1, 2)))


def _sides(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]}"


def _decode(path: Path, size: int | None) -> Pixels:
    with opened(path) as file:
        image = plain(ImageOps.exif_transpose(file))
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)


ABOUT = About(
    name="folder",
    what="your own images, a folder a class",
)
