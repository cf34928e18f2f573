"""IDX files in all their spellings, whole and broken."""

from __future__ import annotations

import gzip
import re
import struct

import numpy as np
import pytest
import torch

from bessemer import data
from bessemer.data import mnist
from bessemer.errors import DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
COUNTS = {"train": 60, "t10k": 10}
SPELLINGS = [
    lambda name: name,
    lambda name: f"{name}.gz",
    lambda name: name.replace("-idx", ".idx"),
    lambda name: name.replace("-idx", ".idx") + ".gz",
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """MNIST with a thousandth of its images."""
    for name, count in (("TRAIN", 50), ("HELD_OUT", 10), ("TEST", 10)):
        monkeypatch.setattr(mnist, name, count)


def arrays(part):
    random = np.random.default_rng(COUNTS[part])
    return random.integers(0, 256, (COUNTS[part], 28, 28), np.uint8), random.integers(0, 10, COUNTS[part], np.uint8)


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def contents():
    images = {part: arrays(part) for part in COUNTS}
    return {name: idx(images[name.split("-")[0]]["labels" in name]) for name in NAMES}


def write(folder, spelling=SPELLINGS[1], **changed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (contents() | {key.replace("_", "-"): value for key, value in changed.items()}).items():
        file = folder / spelling(name)
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return folder


@pytest.mark.parametrize("spelling", SPELLINGS, ids=["plain", "gzipped", "dotted", "dotted gzipped"])
@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "."])
def test_the_files_are_read_in_every_spelling_and_place(tmp_path, spelling, folder):
    write(tmp_path / folder, spelling)
    loaded = data.load("mnist", tmp_path)
    images, labels = arrays("train")
    assert torch.equal(torch.cat([loaded.train.images, loaded.validation.images])[:, 0], torch.from_numpy(images))
    assert torch.cat([loaded.train.labels, loaded.validation.labels]).tolist() == labels.tolist()
    assert torch.equal(loaded.test.images[:, 0], torch.from_numpy(arrays("t10k")[0]))
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [50, 10, 10]
    assert loaded.classes == tuple("0123456789")


def test_a_gzipped_file_without_its_ending_is_still_read(tmp_path):
    for name, content in contents().items():
        (tmp_path / name).write_bytes(gzip.compress(content))
    assert len(data.load("mnist", tmp_path).train) == 50


def test_a_missing_file_is_named(tmp_path):
    (write(tmp_path / "mnist") / f"{NAMES[3]}.gz").unlink()
    with pytest.raises(DataError, match=rf"{tmp_path}/mnist lacks {NAMES[3]}.*bessemer data get mnist"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spelling", SPELLINGS[:2], ids=["plain", "gzipped"])
def test_a_file_cut_off_anywhere_is_named(tmp_path, name, spelling):
    file = write(tmp_path, spelling) / spelling(name)
    whole = file.read_bytes()
    for length in {0, 1, 3, 4, 7, 11, 15, 17, len(whole) // 2, len(whole) - 9, len(whole) - 1}:
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"{re.escape(str(file))} is damaged: .*delete it and run"):
            data.load("mnist", tmp_path)


@pytest.mark.parametrize("place", [12, 200, -6])
def test_a_gzipped_file_with_an_altered_byte_is_named(tmp_path, place):
    file = write(tmp_path) / f"{NAMES[0]}.gz"
    content = bytearray(file.read_bytes())
    content[place] ^= 0x55
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(file))} is damaged"):
        data.load("mnist", tmp_path)


def test_bytes_after_the_end_are_noticed(tmp_path):
    file = write(tmp_path, SPELLINGS[0], train_labels_idx1_ubyte=contents()[NAMES[1]] + b"\0") / NAMES[1]
    with pytest.raises(
        DataError, match=rf"{file} is damaged: it holds 61 bytes of labels where its header promises 60"
    ):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"train_images_idx3_ubyte": contents()[NAMES[1]]},
            "holds labels where images are expected; two files are swapped",
        ),
        (
            {"t10k_labels_idx1_ubyte": contents()[NAMES[2]]},
            "holds images where labels are expected; two files are swapped",
        ),
        (
            {"train_images_idx3_ubyte": contents()[NAMES[2]]},
            "holds 10 images where 60 are expected; training and test files are swapped",
        ),
        (
            {"t10k_labels_idx1_ubyte": contents()[NAMES[1]]},
            "holds 60 labels where 10 are expected; training and test files are swapped",
        ),
        ({"t10k_images_idx3_ubyte": idx(np.zeros((9, 28, 28), np.uint8))}, "holds 9 images where 10 are expected$"),
        ({"t10k_images_idx3_ubyte": idx(np.zeros((10, 28, 20), np.uint8))}, "28×20 pixels where 28×28 are expected"),
        ({"t10k_images_idx3_ubyte": b"<!DOCTYPE html>" * 9}, "begins with 3c 21 44 4f, not like an IDX file"),
        (
            {"t10k_labels_idx1_ubyte": idx(np.full(10, 11, np.uint8))},
            "labels run from 11 to 11, but there are 10 classes",
        ),
    ],
    ids=[
        "labels for images",
        "images for labels",
        "test images",
        "training labels",
        "few",
        "narrow",
        "html",
        "label 11",
    ],
)
def test_swapped_and_foreign_files_are_told_apart(tmp_path, changed, says):
    with pytest.raises(DataError, match=says):
        data.load("mnist", write(tmp_path, **changed))


def test_where_nothing_is_found_every_place_and_every_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BESSEMER_DATA", str(tmp_path / "elsewhere"))
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError) as problem:
        data.load("mnist", tmp_path / "here")
    for part in ("here", "elsewhere", "cache/bessemer/data", "MNIST/raw", "bessemer data get mnist", *NAMES):
        assert part in str(problem.value)


def test_the_real_mnist_is_as_published(real_data, monkeypatch):
    monkeypatch.undo()
    root = real_data("mnist")
    assert "mean 0.1307, deviation 0.3081: as published" in data.check("mnist", root)
    loaded = data.load("mnist", root)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [50_000, 10_000, 10_000]
    assert loaded.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]  # as every tutorial shows them
    assert loaded.test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]


def test_one_altered_pixel_of_the_real_mnist_is_noticed(real_data, tmp_path, monkeypatch):
    monkeypatch.undo()
    source = real_data("mnist") / "mnist"
    for file in source.iterdir():
        if "t10k-images" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    content = bytearray(mnist._content(mnist._file(source, NAMES[2])))
    content[-1] ^= 1
    (tmp_path / NAMES[2]).write_bytes(content)
    with pytest.raises(DataError, match=f"{NAMES[2]} in .* differ from the published files"):
        data.check("mnist", tmp_path)
