import errno
import json
import os

import pytest

from bessemer.errors import FileError
from bessemer.records import read_record, write_record, write_whole

RECORD = {"name": "a", "shares": [0.25, None, 1], "nested": {"é": "\N{SNOWMAN}", "brace": "}"}}


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_record_comes_back_as_it_was_written(tmp_path):
    write_record(tmp_path / "deep" / "er" / "r.json", RECORD)
    assert read_record(tmp_path / "deep" / "er" / "r.json") == RECORD


def test_a_record_is_json_that_any_program_reads(tmp_path):
    write_record(tmp_path / "r.json", RECORD)
    assert json.loads((tmp_path / "r.json").read_text())["record"] == RECORD


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0x2A, 0x07])
def test_one_altered_byte_anywhere_is_noticed(tmp_path, flip):
    """0x2A turns the last newline into a space, 0x07 into a carriage return: JSON would read both."""
    path = tmp_path / "r.json"
    write_record(path, RECORD)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        with pytest.raises(FileError, match="damaged"):
            read_record(path)


def test_a_record_cut_off_anywhere_is_noticed(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, RECORD)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="damaged"):
            read_record(path)


def test_a_record_that_is_no_object_is_refused(tmp_path):
    write_record(tmp_path / "r.json", [1, 2])
    with pytest.raises(FileError, match="damaged"):
        read_record(tmp_path / "r.json")


def test_another_json_file_is_not_called_damaged(tmp_path):
    (tmp_path / "r.json").write_text('{"claims": []}')
    with pytest.raises(FileError, match="no record with its digest; name a run") as refused:
        read_record(tmp_path / "r.json")
    assert "delete" not in str(refused.value)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(FileError, match=r"nothing\.json cannot be read: No such file"):
        read_record(tmp_path / "nothing.json")


def test_a_number_that_is_none_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path / "r.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "report.html"
    write_whole(path, b"old")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(FileError, match=r"no space left to write .*report\.html .*intact"):
        write_whole(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_no_half_of_a_first_file(tmp_path, monkeypatch, call):
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(FileError):
        write_record(tmp_path / "r.json", RECORD)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="cannot be written"):
        write_whole(tmp_path / "file" / "a.html", b"")


def test_a_written_file_has_the_rights_of_any_other(tmp_path):
    write_whole(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
