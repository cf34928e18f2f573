"""PART/CLASS/*.jpeg: which classes and files there are, and how they are shared out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bessemer.data import places
from bessemer.data.decoding import ENDINGS
from bessemer.errors import DataError


def home(path: str, root: Path | None) -> Path:
    """The folder `path`: as it stands, or below `root` and where else data is looked for."""
    tried = [Path(path).expanduser(), *(place / path for place in places.roots(root))]
    for place in tried:
        if place.is_dir():
            return place.resolve()
    raise DataError(f"path: there is no folder {' nor '.join(map(str, dict.fromkeys(tried)))}; write its full path")


def folders(part: Path) -> list[str]:
    """The folders in one, without hidden ones, in alphabetical order."""
    if not part.is_dir():
        raise DataError(f"{part} is missing; put a folder of images for each class there: {part}/CLASS/*.png")
    return sorted(entry.name for entry in os.scandir(part) if entry.is_dir() and not entry.name.startswith("."))


def classes(train: Path) -> tuple[str, ...]:
    """The classes in a folder, at least two."""
    found = tuple(folders(train))
    if len(found) < 2:
        raise DataError(
            f"{train} holds {len(found)} class folders where at least two are expected; "
            f"put images into {train}/CLASS/ for each class"
        )
    return found


def files(part: Path, classes: tuple[str, ...]) -> list[list[str]]:
    """The names of the image files of one split, class by class, in alphabetical order.

    Raises `DataError` where the split lacks a class, has one more, or a class has no image.
    """
    there = folders(part)
    for name in classes:
        if name not in there:
            raise DataError(
                f"{part} lacks the class {name!r} that train has; add the folder {part / name} with its images"
            )
    for name in there:
        if name not in classes:
            raise DataError(f"{part} has a class {name!r} that train lacks; rename {part / name} or take it away")
    found = []
    for name in classes:
        seen = (entry.name for entry in os.scandir(part / name) if not entry.name.startswith("."))
        images = sorted(file for file in seen if file.lower().endswith(ENDINGS))
        if not images:
            raise DataError(f"{part / name} holds no image; put {', '.join(ENDINGS)} files there or remove the class")
        found.append(images)
    return found


def held_out(labels: Int[Tensor, " n"], most: int | None = None) -> Bool[Tensor, " n"]:
    """Which images of a split that lies class by class validate, always the same ones.

    Of each class a tenth, at least one unless it has no other, and at most `most`.
    """
    random = np.random.default_rng(0)
    held = torch.zeros(len(labels), dtype=torch.bool)
    start = 0
    for members in torch.bincount(labels).tolist():
        count = max(members // 10, 1) if members > 1 else 0
        count = count if most is None else min(count, most)
        held[start + torch.from_numpy(random.permutation(members)[:count])] = True
        start += members
    return held


def in_turn(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """An order of a split that lies class by class, of which every first part holds the classes in their shares."""
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]
    return ((rank + 0.5) / counts[labels]).argsort(stable=True)
