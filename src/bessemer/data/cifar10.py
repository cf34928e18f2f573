"""CIFAR-10: 60,000 photographs in ten classes, 32×32 RGB.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009. Six batches of 10,000, five of them to
train, in the binary version (a record is a label byte, then 1,024 red, green and blue bytes) or in the python version
(pickled; read by `bessemer.data.unpickle`, which executes nothing). Where both are there, the binary one is read.

The last `validation` training images are held out. BANG instead trains on all 50,000 and looks at the test images while
training: `validation=0` trains on all, and leaves nothing to look at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bessemer.data import places
from bessemer.data.about import About, Download
from bessemer.data.dataset import Dataset, Split, from_arrays
from bessemer.data.unpickle import read_pickle
from bessemer.errors import DataError, UsageError

IN_A_BATCH, PIXELS, CLASSES = 10_000, 3 * 32 * 32, 10
Records = npt.NDArray[np.uint8]  # a label and 3,072 pixels a row


def load(root: Path | None = None, validation: int = 5000) -> Dataset:
    """CIFAR-10 from the files below `root` (or where else data is looked for).

    validation: how many training images, counted from the end, are held out.
    Raises `UsageError` where that leaves nothing to train on, `DataError` where a file is missing, cut off or corrupt.
    """
    if not isinstance(validation, int) or not 0 <= validation < 5 * IN_A_BATCH:
        raise UsageError(
            f"validation: {validation} images cannot be held out of {5 * IN_A_BATCH:,}; write a number such as 5000"
        )
    folder = places.find(ABOUT, root)
    binary = any((folder / name).is_file() for name in _names(".bin"))
    suffix, read, names = (".bin", _binary, _binary_classes) if binary else ("", _pickled, _pickled_classes)
    classes = names(folder)
    *training, test = _names(suffix)
    split = _split(folder, training, read)
    train = len(split) - validation
    return Dataset(
        "cifar10",
        classes,
        train=Split(split.images[:train], split.labels[:train]),
        validation=Split(split.images[train:], split.labels[train:]),
        test=_split(folder, [test], read),
    )


def _names(suffix: str) -> list[str]:
    return [*(f"data_batch_{number}{suffix}" for number in range(1, 6)), f"test_batch{suffix}"]


def _split(folder: Path, names: list[str], read: Callable[[Path], Records]) -> Split:
    records = np.empty((len(names) * IN_A_BATCH, 1 + PIXELS), np.uint8)
    for place, name in enumerate(names):
        path = _present(folder / name)
        batch = records[place * IN_A_BATCH : (place + 1) * IN_A_BATCH]
        batch[:] = read(path)
        if batch[:, 0].max() >= CLASSES:
            raise _damaged(path, f"it holds the label {batch[:, 0].max()} where 0 … {CLASSES - 1} are expected")
    return from_arrays("cifar10", records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _binary(path: Path) -> Records:
    size, expected = path.stat().st_size, IN_A_BATCH * (1 + PIXELS)
    if size != expected:
        raise _damaged(path, f"it has {size:,} bytes where {expected:,} are expected")
    return np.fromfile(path, np.uint8).reshape(IN_A_BATCH, 1 + PIXELS)


def _binary_classes(folder: Path) -> tuple[str, ...]:
    path = _present(folder / "batches.meta.txt")
    return _ten(path, path.read_text(encoding="latin-1").split())


def _pickled(path: Path) -> Records:
    batch = read_pickle(path)
    images, labels = batch.get("data"), batch.get("labels")
    if not isinstance(images, np.ndarray) or images.shape != (IN_A_BATCH, PIXELS):
        raise _damaged(path, f"`data` should be an array of shape ({IN_A_BATCH}, {PIXELS}), not {_shape(images)}")
    if not isinstance(labels, list) or len(labels) != IN_A_BATCH or not all(label in range(256) for label in labels):
        raise _damaged(path, f"`labels` should be a list of {IN_A_BATCH} class numbers, not {_shape(labels)}")
    said = batch.get("batch_label", b"")
    if isinstance(said, bytes) and said and (b"test" in said) != path.name.startswith("test"):
        raise DataError(
            f"cifar10: {path} calls itself {said.decode('latin-1')!r}; two batches are swapped: rename them"
        )
    return np.column_stack([np.array(labels, np.uint8), images])


def _pickled_classes(folder: Path) -> tuple[str, ...]:
    path = _present(folder / "batches.meta")
    names = read_pickle(path).get("label_names", [])
    return _ten(path, [name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in names])


def _ten(path: Path, names: list[str]) -> tuple[str, ...]:
    if len(names) != CLASSES:
        raise _damaged(path, f"it names {len(names)} classes where {CLASSES} are expected")
    return tuple(names)


def _shape(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.shape)
    return f"a list of {len(value)}" if isinstance(value, list) else f"a {type(value).__name__}"


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"cifar10: {path.parent} lacks {path.name}; put it there, or run `bessemer data get cifar10`")
    return path


def _damaged(path: Path, how: str) -> DataError:
    return DataError(f"cifar10: {path} is damaged: {how}; delete it and run `bessemer data get cifar10`")


_ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

ABOUT = About(
    name="cifar10",
    what="photographs in ten classes, 32×32 RGB",
    files=f"the files of {_ARCHIVE}",
    training=5 * IN_A_BATCH,
    test=IN_A_BATCH,
    per_class=(6000,) * CLASSES,
    mean=(0.4914, 0.4822, 0.4465),
    deviation=(0.2470, 0.2435, 0.2616),
    folders=("cifar-10-batches-bin", "cifar-10-batches-py", "."),
    marks=(*_names(".bin"), *_names("")),
    downloads=(Download("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", (_ARCHIVE,)),),
)
