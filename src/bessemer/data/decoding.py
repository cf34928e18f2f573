"""One image file to pixels: turned upright as its camera says, in 8-bit grey or RGB, cut to a square where asked."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from bessemer.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
Pixels = npt.NDArray[np.uint8]  # (H, W) where grey, (H, W, 3) else

AREA = (0.08, 1.0)  # of a training image's crop, in shares of the image
RATIO = (3 / 4, 4 / 3)
ATTEMPTS, DRAWS = 10, 5  # at a crop that fits into the image; random numbers each

# what Pillow's decoders let through where bytes are missing or wrong
STUMBLES = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def unreadable(path: Path, why: object, remedy: str = "replace it or take it away") -> DataError:
    """The error for a file that is no image, or no longer one."""
    return DataError(f"{path} cannot be read as an image ({why}); {remedy}")


@contextmanager
def opened(path: Path, remedy: str = "replace it or take it away") -> Iterator[Image.Image]:
    """The image in a file. What goes wrong while it is open is raised as a `DataError` that names it."""
    try:
        with Image.open(path) as file:
            yield file
    except STUMBLES as problem:
        raise unreadable(path, getattr(problem, "strerror", None) or problem, remedy) from problem


def plain(image: Image.Image) -> Image.Image:
    """The image in 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        return Image.fromarray((np.asarray(image, np.int64) // 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    if image.mode == "P":  # straight to RGB warns where the palette has transparent colours
        image = image.convert("RGBA")
    return image.convert("RGB")


def centre_square(path: Path, size: int, resize: int, remedy: str) -> Pixels:
    """How a test image is seen: its short side made `resize` pixels (bicubic), the middle `size` × `size` cut out.

    Returns RGB, (size, size, 3). Raises `DataError` where the file cannot be read.
    """
    with opened(path, remedy) as file:
        image = _upright(file)
        short = min(image.size)
        width, height = (max(resize, round(side * resize / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))


_LYING = (5, 6, 7, 8)  # orientations that a quarter turn makes upright; there are files with others, that mean nothing


def random_square(path: Path, size: int, draws: Sequence[Sequence[float]], remedy: str) -> Pixels:
    """How a training image is seen: a random part of it (`crop_box`), made `size` × `size` (bilinear).

    Returns RGB, (size, size, 3). Raises `DataError` where the file cannot be read.
    """
    with opened(path, remedy) as file:
        lying = file.getexif().get(ExifTags.Base.Orientation) in _LYING
        width, height = file.size[::-1] if lying else file.size
        left, top, across, down = crop_box(width, height, draws)
        # libjpeg decodes at a half, a quarter or an eighth of the size for a part of the price
        enough = math.ceil(width * size / across), math.ceil(height * size / down)
        drafted = file.draft(file.mode, enough[::-1] if lying else enough)
        shrunk = round((height if lying else width) / drafted[1][2]) if drafted else 1
        image = _upright(file)
        box = (left / shrunk, top / shrunk, (left + across) / shrunk, (top + down) / shrunk)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))


def crop_box(width: int, height: int, draws: Sequence[Sequence[float]]) -> tuple[int, int, int, int]:
    """The part of a training image: left, top, width and height in pixels.

    Its share of the area is uniform in `AREA`; its ratio is uniform in `RATIO`, and it is laid on its side half of the
    time (facebook/fb.resnet.torch; the law is that of Szegedy et al. 2015, section 6). draws: numbers in (0, 1),
    `DRAWS` for each of `ATTEMPTS`; where no attempt fits into the image, the largest square in the middle is taken.
    """
    for area, ratio, laid, right, down in draws:
        pixels = (AREA[0] + (AREA[1] - AREA[0]) * area) * width * height
        shape = RATIO[0] + (RATIO[1] - RATIO[0]) * ratio
        sides = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        across, along = sides[::-1] if laid < 0.5 else sides
        if 0 < across <= width and 0 < along <= height:
            return int(right * (width - across + 1)), int(down * (height - along + 1)), across, along
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def fault(path: Path) -> str:
    """Why a file cannot be read as an image; nothing where it can. All of the file is read.

    A JPEG file is decoded at an eighth of its size, which misses nothing: every coefficient is read all the same.
    """
    try:
        with Image.open(path) as file:
            file.draft(file.mode, (1, 1))
            _upright(file)
    except STUMBLES as problem:
        return str(getattr(problem, "strerror", None) or problem)
    return ""


def _upright(file: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(file, in_place=True)
    return file if file.mode == "RGB" else plain(file).convert("RGB")
