"""MNIST: 70,000 handwritten digits, 28×28 grey.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition", 1998.
Four IDX files, plain or gzipped: a big-endian header (magic number, sizes), then one byte a pixel or label. The splits
are BANG's: the training file's first 50,000 train, its last 10,000 validate, and the test file's 10,000 test.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from bessemer.data import places
from bessemer.data.about import About, Download
from bessemer.data.dataset import Dataset, Split, from_arrays
from bessemer.errors import DataError

TRAIN, HELD_OUT, TEST = 50_000, 10_000, 10_000
_MAGIC = {2051: "images", 2049: "labels"}

# MD5 of the published files: as they are served, and unpacked
_DIGESTS = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")


def load(root: Path | None = None) -> Dataset:
    """MNIST from the files below `root` (or where else data is looked for).

    Raises `DataError` where a file is missing, cut off, corrupt or another one than its name says.
    """
    folder = places.find(ABOUT, root)
    training = _part(folder, "train", TRAIN + HELD_OUT)
    return Dataset(
        "mnist",
        tuple("0123456789"),
        train=Split(training.images[:TRAIN], training.labels[:TRAIN]),
        validation=Split(training.images[TRAIN:], training.labels[TRAIN:]),
        test=_part(folder, "t10k", TEST),
    )


def _part(folder: Path, part: str, count: int) -> Split:
    images = _read(_file(folder, f"{part}-images-idx3-ubyte"), "images", count)
    labels = _read(_file(folder, f"{part}-labels-idx1-ubyte"), "labels", count)
    return from_arrays("mnist", images[:, None], labels)


def _spellings(name: str) -> tuple[str, ...]:
    """A file's names: as published, unpacked, and with the dot that unpacking tools of old put in."""
    dotted = name.replace("-idx", ".idx")
    return name, f"{name}.gz", dotted, f"{dotted}.gz"


def _file(folder: Path, name: str) -> Path:
    for spelling in _spellings(name):
        if (folder / spelling).is_file():
            return folder / spelling
    raise DataError(
        f"mnist: {folder} lacks {name} (plain or .gz); put it there, or let `bessemer data get mnist` download it"
    )


def _content(path: Path) -> bytes:
    """A file's bytes, unpacked if they are gzipped, whatever its name says."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise _damaged(path, f"its gzip data is cut off or corrupt ({problem})") from problem
    except OSError as problem:
        raise DataError(f"mnist: {path} cannot be read: {problem.strerror}") from problem


def _read(path: Path, what: str, count: int) -> np.ndarray:
    """The array in an IDX file, which must hold `count` images or labels."""
    content = _content(path)
    start = 16 if what == "images" else 8
    found = _MAGIC.get(int.from_bytes(content[:4], "big"))
    if found is None or len(content) < start:
        raise _damaged(path, f"it begins with {content[:4].hex(' ') or 'nothing'}, not like an IDX file")
    if found != what:
        raise DataError(f"mnist: {path} holds {found} where {what} are expected; two files are swapped: rename them")
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if shape[0] != count:
        swapped = "; training and test files are swapped: rename them" if shape[0] in (TEST, TRAIN + HELD_OUT) else ""
        raise DataError(f"mnist: {path} holds {shape[0]:,} {what} where {count:,} are expected{swapped}")
    if shape[1:] not in ((28, 28), ()):
        raise DataError(f"mnist: {path} holds images of {shape[1]}×{shape[2]} pixels where 28×28 are expected")
    if len(content) - start != math.prod(shape):
        held = f"{len(content) - start:,} bytes of {what} where its header promises {math.prod(shape):,}"
        raise _damaged(path, f"it holds {held}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # torch wants to own its memory


def _damaged(path: Path, how: str) -> DataError:
    return DataError(f"mnist: {path} is damaged: {how}; delete it and run `bessemer data get mnist`")


def _altered(folder: Path) -> list[str]:
    def digest(name: str) -> str:
        return hashlib.md5(_content(_file(folder, name)), usedforsecurity=False).hexdigest()

    return [name for name, (_, unpacked) in _DIGESTS.items() if digest(name) != unpacked]


ABOUT = About(
    name="mnist",
    what="handwritten digits, 28×28 grey",
    files=f"{', '.join(f'{name}.gz' for name in _DIGESTS)} from {_MIRRORS[0]}",
    training=TRAIN + HELD_OUT,
    test=TEST,
    per_class=(6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958),
    mean=(0.1307,),
    deviation=(0.3081,),
    folders=("mnist", "MNIST/raw", "."),
    marks=tuple(spelling for name in _DIGESTS for spelling in _spellings(name)),
    downloads=tuple(
        Download(f"{name}.gz", served, tuple(f"{mirror}{name}.gz" for mirror in _MIRRORS))
        for name, (served, _) in _DIGESTS.items()
    ),
    altered=_altered,
)
