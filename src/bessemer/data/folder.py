"""Your own images: PATH/train/CLASS/*.png, PATH/val/CLASS/*.png and, if you have it, PATH/test/CLASS/*.png.

png, jpg, jpeg and webp files; the classes are the folders' names in alphabetical order. Where there is no `test`, `val`
is the test split (nothing may be chosen by it), and a tenth of each class of `train`, always the same images, is held
out to validate. For evaluation alone, `PATH/CLASS/*.png` is enough: every image is then a test image. Test images come
in turn from all classes, so that the first few stand for all of them.

Images are turned upright as their camera says, lose their transparency, and become RGB unless every one of them is
grey. `size` shrinks or enlarges each until it covers a square of so many pixels, and cuts out the middle. What was
decoded is kept in the user's cache until a file or a setting changes.
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bessemer.data import places
from bessemer.data.about import About
from bessemer.data.dataset import Dataset, Split
from bessemer.errors import DataError, UsageError
from bessemer.records import write_whole

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
DECODER = 1  # counts the ways files were ever decoded: what an older way kept is not used
Pixels = npt.NDArray[np.uint8]  # (H, W) where grey, (H, W, 3) else


def load(root: Path | None = None, path: str = "", size: int | None = None) -> Dataset:
    """The images below `path`: as it stands, or below `root` and where else data is looked for.

    size: side of the square that every image becomes, in pixels; None where they all have one size already.
    Raises `UsageError` for a wrong setting, `DataError` where a folder or an image is not as described above.
    """
    if not path:
        raise UsageError("path: the data set `folder` needs the folder that holds train/CLASS/… and val/CLASS/…")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UsageError(f"size: images cannot be {size} pixels wide; write the side of the square, such as 64")
    home = _home(path, root)
    if not (home / "train").is_dir() and _folders(home) and "val" not in _folders(home):
        return _only_tests(home, size)
    if not (home / "train").is_dir():
        part = next((part for part in ("val", "test") if (home / part).is_dir()), "")
        alone = f"name {home / part}" if part else f"put them in {home}/CLASS/*.png"
        raise DataError(
            f"{home / 'train'} is missing; put a folder of images for each class there: {home}/train/CLASS/*.png; "
            f"if there is nothing to train, {alone}"
        )
    classes = _classes(home / "train")
    present = [part for part in ("train", "val", "test") if part != "test" or (home / part).is_dir()]
    parts = [_files(home / part, classes) for part in present]
    files = [file for part in parts for file in part]
    lengths = [len(part) for part in parts]
    images = _images(home, files, size).split(lengths)
    labels = torch.tensor([file.label for file in files]).split(lengths)
    train, *others = (Split(*pair) for pair in zip(images, labels, strict=True))
    if len(others) == 2:
        return Dataset(home.name, classes, train, validation=others[0], test=_mixed(others[1]))
    kept, held = _a_tenth(train.labels)
    return Dataset(
        home.name,
        classes,
        train=Split(train.images[kept], train.labels[kept]),
        validation=Split(train.images[held], train.labels[held]),
        test=_mixed(others[0]),
    )


def _only_tests(home: Path, size: int | None) -> Dataset:
    """A data set without training images."""
    classes = _classes(home)
    files = _files(home, classes)
    test = Split(_images(home, files, size), torch.tensor([file.label for file in files]))
    return Dataset(home.name, classes, train=test.first(0), validation=test.first(0), test=_mixed(test))


def _mixed(split: Split) -> Split:
    """A split that lies class by class, in an order of which every first part holds the classes in their shares."""
    counts = torch.bincount(split.labels)
    rank = torch.arange(len(split)) - (counts.cumsum(0) - counts)[split.labels]
    order = ((rank + 0.5) / counts[split.labels]).argsort(stable=True)
    return Split(split.images[order], split.labels[order])


@dataclass(frozen=True)
class _File:
    """An image file, and what tells whether it has changed."""

    path: Path
    label: int
    bytes: int
    changed: int


def _home(path: str, root: Path | None) -> Path:
    tried = [Path(path).expanduser(), *(place / path for place in places.roots(root))]
    for home in tried:
        if home.is_dir():
            return home.resolve()
    raise DataError(f"path: there is no folder {' nor '.join(map(str, dict.fromkeys(tried)))}; write its full path")


def _folders(part: Path) -> list[str]:
    if not part.is_dir():
        raise DataError(f"{part} is missing; put a folder of images for each class there: {part}/CLASS/*.png")
    return sorted(entry.name for entry in os.scandir(part) if entry.is_dir() and not entry.name.startswith("."))


def _classes(train: Path) -> tuple[str, ...]:
    classes = tuple(_folders(train))
    if len(classes) < 2:
        raise DataError(
            f"{train} holds {len(classes)} class folders where at least two are expected; "
            f"put images into {train}/CLASS/ for each class"
        )
    return classes


def _files(part: Path, classes: tuple[str, ...]) -> list[_File]:
    """The images of one split, class by class, in the order of their names."""
    there = _folders(part)
    for name in classes:
        if name not in there:
            raise DataError(
                f"{part} lacks the class {name!r} that train has; add the folder {part / name} with its images"
            )
    for name in there:
        if name not in classes:
            raise DataError(f"{part} has a class {name!r} that train lacks; rename {part / name} or take it away")
    files = []
    for label, name in enumerate(classes):
        there = [entry.name for entry in os.scandir(part / name) if not entry.name.startswith(".")]
        found = sorted(file for file in there if file.lower().endswith(ENDINGS))
        if not found:
            raise DataError(f"{part / name} holds no image; put {', '.join(ENDINGS)} files there or remove the class")
        for file in found:
            try:
                seen = (part / name / file).stat()
            except OSError as problem:
                raise _unreadable(part / name / file, problem.strerror) from problem
            files.append(_File(part / name / file, label, seen.st_size, seen.st_mtime_ns))
    return files


def _a_tenth(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which images to keep and which to hold out: of each class a tenth, at least one, unless it has no other."""
    random = np.random.default_rng(0)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        (members,) = torch.where(labels == label)
        count = max(len(members) // 10, 1) if len(members) > 1 else 0
        held[members[torch.from_numpy(random.permutation(len(members))[:count])]] = True
    return ~held, held


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


# what Pillow's decoders let through where bytes are missing or wrong
_STUMBLES = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def _unreadable(path: Path, why: object) -> DataError:
    return DataError(f"{path} cannot be read as an image ({why}); replace it or take it away")


def _decode(path: Path, size: int | None) -> Pixels:
    try:
        with Image.open(path) as file:
            image = _plain(ImageOps.exif_transpose(file))
    except _STUMBLES as problem:
        raise _unreadable(path, problem) from problem
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _plain(image: Image.Image) -> Image.Image:
    """The image in 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        return Image.fromarray((np.asarray(image, np.int64) // 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    if image.mode == "P":  # straight to RGB warns where the palette has transparent colours
        image = image.convert("RGBA")
    return image.convert("RGB")


ABOUT = About(
    name="folder",
    what="your own images, a folder a class",
)
