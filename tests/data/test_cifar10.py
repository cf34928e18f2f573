"""The binary and the python version hold the same images; both are read, whole and broken."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest
import torch

from bessemer import data
from bessemer.data import cifar10
from bessemer.errors import DataError, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
COUNT = 20


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """CIFAR-10 with twenty images a batch."""
    monkeypatch.setattr(cifar10, "IN_A_BATCH", COUNT)


def batch(name):
    random = np.random.default_rng(NAMES.index(name))
    return random.integers(0, 256, (COUNT, 3072), np.uint8), random.integers(0, 10, COUNT).tolist()


def write_binary(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        records = (bytes([label]) + image.tobytes() for image, label in zip(*batch(name), strict=True))
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


def string(text):
    """A string as Python 2 pickles it."""
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<I", len(text)) + text


def as_python_2_wrote_it(said, images, labels):
    """The bytes of an official batch: protocol 2, every text a Python 2 string, the array by numpy.core.multiarray."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R("
        b"K\x01" + b"".join(b"M" + struct.pack("<H", side) for side in images.shape) + b"\x86"
        b"cnumpy\ndtype\n"
        + string(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89" + string(images.tobytes()) + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}(" + string(b"batch_label") + string(said) + string(b"labels") + numbers
        + string(b"data") + array + string(b"filenames") + b"](" + string(b"a.png") * len(labels) + b"eu."
    )  # fmt: skip


def said(name):
    return b"testing batch 1 of 1" if name == "test_batch" else f"training batch {name[-1]} of 5".encode()


def as_python_3_writes_it(label, images, labels):
    return pickle.dumps(
        {b"batch_label": label, b"labels": labels, b"data": images, b"filenames": [b"a.png"]}, protocol=2
    )


def write_python(folder, written=as_python_2_wrote_it):
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).write_bytes(written(said(name), *batch(name)))
    meta = {b"num_cases_per_batch": COUNT, b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


VERSIONS = {
    "binary": write_binary,
    "python": write_python,
    "python, pickled again": lambda folder: write_python(folder, as_python_3_writes_it),
}


def test_the_imitated_official_pickle_is_one():
    """NumPy itself reads it, as the publisher's page says to."""
    images, labels = batch("test_batch")
    held = pickle.loads(as_python_2_wrote_it(said("test_batch"), images, labels), encoding="bytes")
    assert np.array_equal(held[b"data"], images)
    assert held[b"labels"] == labels
    assert held[b"batch_label"] == b"testing batch 1 of 1"


@pytest.mark.parametrize("write", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "cifar-10-batches-py", "."])
def test_both_versions_are_read_from_every_place(tmp_path, write, folder):
    write(tmp_path / folder)
    loaded = data.load("cifar10", tmp_path, validation=15)
    images, labels = zip(*(batch(name) for name in NAMES), strict=True)
    images = torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32)
    labels = [label for some in labels for label in some]
    splits = (loaded.train, loaded.validation, loaded.test)
    assert [len(split) for split in splits] == [85, 15, 20]
    assert torch.equal(torch.cat([split.images for split in splits]), images)
    assert torch.cat([split.labels for split in splits]).tolist() == labels
    assert loaded.classes == CLASSES


def test_channels_and_rows_come_in_the_published_order(tmp_path):
    """A record is 1,024 red, then green, then blue bytes, each row by row."""
    folder = write_binary(tmp_path)
    record = bytes([3]) + bytes([200]) * 1024 + bytes([100]) * 1024 + bytes(32 * [7] + 992 * [0])
    (folder / "test_batch.bin").write_bytes(record * COUNT)
    image = data.load("cifar10", tmp_path, validation=0).test.images[0]
    assert (image[0] == 200).all()
    assert (image[1] == 100).all()
    assert image[2].sum(1).tolist() == [32 * 7] + 31 * [0]


def test_no_validation_leaves_an_empty_split(tmp_path):
    loaded = data.load("cifar10", write_binary(tmp_path), validation=0)
    assert len(loaded.train) == 100
    assert loaded.validation.images.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("validation", [-1, 100, 5000, 0.1, "5"])
def test_a_validation_part_that_cannot_be_is_refused(tmp_path, validation):
    with pytest.raises(UsageError, match=rf"validation: {validation} images cannot be held out of 100"):
        data.load("cifar10", write_binary(tmp_path), validation=validation)


def test_where_both_versions_are_there_the_binary_one_is_read(tmp_path):
    write_binary(tmp_path)
    for name in NAMES:
        (tmp_path / name).write_bytes(b"no pickle")
    assert len(data.load("cifar10", tmp_path, validation=0).train) == 100


@pytest.mark.parametrize("length", [0, 1, 3073, COUNT * 3073 - 1, COUNT * 3073 + 1])
def test_a_binary_batch_of_the_wrong_length_is_named(tmp_path, length):
    file = write_binary(tmp_path) / "data_batch_3.bin"
    file.write_bytes((file.read_bytes() + b"x")[:length])
    with pytest.raises(DataError, match=rf"{file} is damaged: it has {length:,} bytes where 61,460 are expected"):
        data.load("cifar10", tmp_path, validation=0)


@pytest.mark.parametrize("write", VERSIONS.values(), ids=VERSIONS)
def test_missing_files_are_named(tmp_path, write):
    write(tmp_path)
    for gone in ("data_batch_4", "batches.meta"):
        (file,) = tmp_path.glob(f"{gone}*")
        file.unlink()
        with pytest.raises(DataError, match=f"lacks {gone}"):
            data.load("cifar10", tmp_path, validation=0)


def test_a_label_beyond_the_classes_is_named_with_its_file(tmp_path):
    file = write_binary(tmp_path) / "data_batch_2.bin"
    file.write_bytes(b"\x0b" + file.read_bytes()[1:])
    with pytest.raises(DataError, match=rf"{file} is damaged: it holds the label 11 where 0 … 9 are expected"):
        data.load("cifar10", tmp_path, validation=0)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1] * 20}, r"`data` should be .* not \(3, 3072\)"),
        ({b"labels": [1] * 20}, "`data` should be .* not a NoneType"),
        ({b"data": np.zeros((20, 3072), np.uint8)}, "`labels` should be .* not a NoneType"),
        ({b"data": np.zeros((20, 3072), np.uint8), b"labels": [1] * 19}, "`labels` should be .* not a list of 19"),
        ({b"data": np.zeros((20, 3072), np.uint8), b"fine_labels": [1] * 20}, "`labels` should be"),
    ],
    ids=["few images", "no images", "no labels", "few labels", "CIFAR-100"],
)
def test_a_pickled_batch_of_something_else_is_named(tmp_path, held, says):
    (write_python(tmp_path) / "data_batch_2").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(DataError, match=f"data_batch_2 is damaged: {says}"):
        data.load("cifar10", tmp_path, validation=0)


def test_swapped_batches_are_noticed_in_the_python_version(tmp_path):
    folder = write_python(tmp_path)
    training = (folder / "data_batch_5").read_bytes()
    (folder / "test_batch").write_bytes(training)
    with pytest.raises(DataError, match=r"test_batch calls itself 'training batch 5 of 5'; two batches are swapped"):
        data.load("cifar10", tmp_path, validation=0)


class Malicious:
    """Pickles into a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_malicious_batch_is_refused_and_does_nothing(tmp_path, file):
    folder, witness = write_python(tmp_path), tmp_path / "witness"
    (folder / file).write_bytes(pickle.dumps({b"data": Malicious(str(witness))}, protocol=2))
    with pytest.raises(DataError, match=rf"{file} asks for posix\.mkdir.*nothing was executed"):
        data.load("cifar10", tmp_path, validation=0)
    assert not witness.exists()


def test_the_wrong_number_of_classes_is_refused(tmp_path):
    (write_binary(tmp_path) / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="it names 2 classes where 10 are expected"):
        data.load("cifar10", tmp_path, validation=0)


def test_the_real_cifar10_has_the_published_moments(real_data, monkeypatch):
    monkeypatch.undo()
    line = data.check("cifar10", real_data("cifar-10-batches-bin"))
    assert "mean 0.4914 0.4822 0.4465, deviation 0.2470 0.2435 0.2616: as published" in line


def test_other_images_are_noticed_by_their_moments(tmp_path, monkeypatch):
    loaded = data.load("cifar10", write_binary(tmp_path), validation=0)
    about = data.ABOUT["cifar10"]
    counts = torch.cat([loaded.train.labels, loaded.test.labels]).bincount(minlength=10)
    small = data.About(
        "cifar10",
        "",
        training=100,
        test=20,
        per_class=tuple(counts.tolist()),
        mean=about.mean,
        deviation=about.deviation,
    )
    with pytest.raises(
        DataError, match=r"the mean of the training images is .* where 0\.4914 0\.4822 0\.4465 is published"
    ):
        small.verify(loaded)
