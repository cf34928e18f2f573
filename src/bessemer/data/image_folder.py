"""Image folders of ImageNet's size: PATH/train/CLASS/*.jpeg and PATH/val/CLASS/*.jpeg, decoded when they are needed.

The classes are the folders' names in alphabetical order. `val` is the test split (nothing may be chosen by it); of each
class of `train`, `held_out` images validate, always the same ones. Where there is no `train`, there are only test
images. Test and validation images come in turn from all classes, so that the first few stand for all of them.

A training image is a random part of its file (8 to 100 % of the area, ratio 3/4 to 4/3) resized to `size` × `size`; a
test image has its short side resized to `resize` (bicubic, by Pillow, which averages where it shrinks), and its middle
cut out. Images are turned upright as their camera says and become RGB. `[augmentation]` adds what is done on the
device: `flip = true`, `jitter = 0.4`, `lighting = 0.1` for the usual ImageNet training.

A file that cannot be read ends the run with its name when its turn comes. With `unreadable = "skip"`, every file is
looked through beforehand (for ImageNet some hours of one core; once, it is remembered), and such files are left out,
counted and listed.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch

from bessemer.data import class_folders
from bessemer.data.about import About
from bessemer.data.dataset import Dataset
from bessemer.data.decoded_ahead import spare_cores
from bessemer.data.download import Progress, silent
from bessemer.data.lazy import ImageFiles, LazySplit
from bessemer.data.unreadable import kept_at, unreadable_files
from bessemer.errors import DataError, UsageError, unknown

REFUSE, SKIP = "refuse", "skip"
SHOWN = 5  # unreadable files that are named in a warning
_REMEDY = 'replace it, take it away, or set data.unreadable = "skip" to go on without such files'


def load(
    root: Path | None = None,
    path: str = "",
    size: int = 224,
    resize: int = 256,
    held_out: int = 10,
    unreadable: str = REFUSE,
    workers: int | None = None,
) -> Dataset:
    """The images below `path`: as it stands, or below `root` and where else data is looked for.

    size: side of the square that every image becomes, in pixels. resize: short side of a test image before it is cut.
    held_out: images of each class that validate, at most a tenth of the class. unreadable: "refuse" or "skip". workers:
    processes that decode training images; the process's share of the cores unless given, 0 for none.
    Raises `UsageError` for a wrong setting, `DataError` where a folder is not as described above.
    """
    if not path:
        raise UsageError("path: the data set `image-folder` needs the folder that holds train/CLASS/… and val/CLASS/…")
    if size < 1 or resize < size:
        raise UsageError(
            f"size and resize: {size} pixels cannot be cut out of {resize}; write size ≤ resize, from 1 on"
        )
    if held_out < 0 or (workers or 0) < 0:
        raise UsageError(f"held_out and workers cannot be negative, found {held_out} and {workers}")
    if unreadable not in (REFUSE, SKIP):
        raise unknown("unreadable", unreadable, (REFUSE, SKIP))
    home = class_folders.home(path, root)
    parts = [part for part in ("train", "val") if part == "val" or (home / part).is_dir()]
    classes = class_folders.classes(home / parts[0])
    workers = spare_cores() if workers is None else workers
    splits = {part: _split(home / part, classes, size, resize, unreadable, workers) for part in parts}
    test = splits["val"].only(class_folders.in_turn(splits["val"].labels))
    train = splits.get("train", test.first(0))
    held = class_folders.held_out(train.labels, held_out)
    validating = torch.where(held)[0]
    return Dataset(
        home.name,
        classes,
        train=train.only(torch.where(~held)[0]),
        validation=train.only(validating[class_folders.in_turn(train.labels[validating])]),
        test=test,
    )


def unreadable_in(path: str, root: Path | None = None, progress: Progress = silent) -> list[str]:
    """Every file below `path` that cannot be read, and why; it is remembered, so that `load` need not look again."""
    home = class_folders.home(path, root)
    found = []
    for part in (home / part for part in ("train", "val") if (home / part).is_dir()):
        classes = class_folders.classes(part)
        for name, faults in unreadable_files(part, classes, class_folders.files(part, classes), progress).items():
            found += [f"{part / name / file} ({why})" for file, why in faults.items()]
    return found


def _split(part: Path, classes: tuple[str, ...], size: int, resize: int, unreadable: str, workers: int) -> LazySplit:
    files = class_folders.files(part, classes)
    if unreadable == SKIP:
        files = _readable(part, classes, files)
    owners = np.repeat(np.arange(len(classes)), [len(names) for names in files])
    names = np.array([os.fsencode(name) for own in files for name in own])
    images = ImageFiles(part, classes, owners, names, size, resize, threads=workers, remedy=_REMEDY)
    return LazySplit(images, torch.from_numpy(owners), workers=workers)


def _readable(part: Path, classes: tuple[str, ...], files: list[list[str]]) -> list[list[str]]:
    """The files that can be read; a warning says which cannot. Raises `DataError` where none of a class is left."""
    found = unreadable_files(part, classes, files)
    if not found:
        return files
    left = [[file for file in own if file not in found.get(name, ())] for name, own in zip(classes, files, strict=True)]
    for name, own in zip(classes, left, strict=True):
        if not own:
            raise DataError(f"{part / name} holds no image that can be read; put some there or remove the class")
    every = [f"{name}/{file} ({why})" for name, faults in found.items() for file, why in faults.items()]
    shown = ", ".join(every[:SHOWN]) + (f", … (all of them in {kept_at(part)})" if len(every) > SHOWN else "")
    warnings.warn(
        f"{part}: {len(every):,} of {sum(map(len, files)):,} images cannot be read and are left out: {shown}",
        stacklevel=4,
    )
    return left


ABOUT = About(
    name="image-folder",
    what="folders of ImageNet's size, decoded while training",
)
