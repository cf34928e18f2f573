"""A pickle may hold plain data and nothing else; whatever else it asks for is refused and not executed."""

from __future__ import annotations

import contextlib
import os
import pickle
import random

import numpy as np
import pytest

from bessemer.data.unpickle import read_pickle
from bessemer.errors import DataError


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_data_comes_back_from_every_protocol(tmp_path, protocol, order):
    array = np.asarray(np.arange(12, dtype=np.uint8).reshape(3, 4), order=order)
    held = {b"data": array, b"labels": [1, 2.5, None, True], "names": {b"a": ("b", b"c")}}
    (tmp_path / "p").write_bytes(pickle.dumps(held, protocol=protocol))
    found = read_pickle(tmp_path / "p")
    assert np.array_equal(found.pop("data"), array)
    assert found == {"labels": [1, 2.5, None, True], "names": {b"a": ("b", b"c")}}


def test_python_2s_own_strings_come_back_as_bytes(tmp_path):
    (tmp_path / "p").write_bytes(b"\x80\x02}q\x01U\x04dataU\x03abcs.")
    assert read_pickle(tmp_path / "p") == {"data": b"abc"}


class Calls:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch {witness}",)),
        (eval, ("__import__('pathlib').Path('{witness}').touch()",)),
        (getattr, ({}, "keys")),
        (np.load, ("{witness}",)),
        (np.fromfile, ("{witness}",)),
        (bytearray, (b"x",)),
        (os.mkdir, ("{witness}",)),
    ],
    ids=["os.system", "eval", "getattr", "np.load", "np.fromfile", "bytearray", "os.mkdir"],
)
def test_a_pickle_that_calls_is_refused_and_calls_nothing(tmp_path, protocol, function, arguments):
    witness = tmp_path / "witness"
    arguments = [part.format(witness=witness) if isinstance(part, str) else part for part in arguments]
    for held in ({b"data": Calls(function, *arguments)}, Calls(function, *arguments), [Calls(function, *arguments)]):
        (tmp_path / "p").write_bytes(pickle.dumps(held, protocol=protocol))
        with pytest.raises(DataError, match=r"p asks for \S+, which plain data never does; nothing was executed"):
            read_pickle(tmp_path / "p")
    assert not witness.exists()


def test_the_same_pickle_would_have_run_in_an_ordinary_reader(tmp_path):
    """The test above can fail."""
    witness = tmp_path / "witness"
    pickle.loads(pickle.dumps(Calls(os.mkdir, str(witness)), protocol=2))
    assert witness.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cposix\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"c__builtin__\neval\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dot\x93.",
        b"\x80\x02cnumpy\nload\n.",
    ],
    ids=["global", "posix", "inst", "python 2", "attribute of a known name", "unknown name of a known module"],
)
def test_every_way_to_name_a_function_is_refused(tmp_path, program):
    (tmp_path / "p").write_bytes(program)
    with pytest.raises(DataError, match="asks for"):
        read_pickle(tmp_path / "p")


def test_the_stand_ins_cannot_be_altered_by_a_pickle(tmp_path):
    # BUILD with a slot state sets attributes of what lies on the stack: here the class that stands for numpy.ndarray
    (tmp_path / "p").write_bytes(b"\x80\x02cnumpy\nndarray\nN}U\x05arrayK\x01s\x86b.")
    with pytest.raises(DataError, match="cut off or corrupt"):
        read_pickle(tmp_path / "p")


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ([1, 2], "holds a list where a dict is expected"),
        ({"data": np.zeros(3)}, "holds an array of .*f8.* where one of bytes is expected"),
        ({"data": np.array([{}], object)}, "holds an array of .*O8.* where one of bytes is expected"),
    ],
    ids=["no dict", "floats", "objects"],
)
def test_what_is_not_a_dict_of_byte_arrays_is_refused(tmp_path, held, says):
    (tmp_path / "p").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(DataError, match=says):
        read_pickle(tmp_path / "p")


def test_a_file_cut_off_or_altered_anywhere_is_answered_with_a_sentence(tmp_path):
    whole = pickle.dumps({b"data": np.zeros((3, 4), np.uint8), b"labels": [1, 2, 3]}, protocol=2)
    for length in range(len(whole)):
        (tmp_path / "p").write_bytes(whole[:length])
        with pytest.raises(DataError, match="p is cut off or corrupt"):
            read_pickle(tmp_path / "p")
    chance = random.Random(0)
    for _ in range(1000):
        altered = bytearray(whole)
        altered[chance.randrange(len(whole))] = chance.choice(
            b"()].}abcegijklopqrstuNIKMRTUXjr\x00\x01\x7f\x80\x81\x85\x94"
        )
        (tmp_path / "p").write_bytes(altered)
        with contextlib.suppress(DataError):
            read_pickle(tmp_path / "p")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}r\xff\xff\xff\xff.",
        b"}p999999999999\n.",
        b"\x80\x05\x96" + b"\xff" * 5 + b"\0\0\0x.",
        b"T\xff\xff\xff\x7fx.",
    ],
    ids=["memo", "memo in text", "bytearray", "string"],
)
def test_a_size_beyond_the_file_is_refused_before_memory_is_set_aside(tmp_path, program):
    (tmp_path / "p").write_bytes(program)
    with pytest.raises(DataError, match="cut off or corrupt"):
        read_pickle(tmp_path / "p")


def test_a_missing_file_is_answered_with_a_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_pickle(tmp_path / "p")
