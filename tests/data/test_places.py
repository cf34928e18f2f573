"""Data is looked for in the named directory, then in $BESSEMER_DATA, then in the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from bessemer import data
from bessemer.data import places
from bessemer.errors import DataError, UsageError


def put(root):
    (root / "mnist").mkdir(parents=True)
    (root / "mnist" / "train-images-idx3-ubyte").touch()


def test_the_places_are_searched_in_their_order(tmp_path, monkeypatch):
    named, variable = tmp_path / "named", tmp_path / "variable"
    named.mkdir()
    monkeypatch.setenv("BESSEMER_DATA", str(variable))
    assert places.roots(named) == [named, variable, tmp_path / "cache" / "bessemer" / "data"]
    for root in reversed(places.roots(named)):
        put(root)
        assert data.find("mnist", named) == root / "mnist"


def test_without_a_variable_the_cache_is_below_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.roots() == [Path.home() / ".cache" / "bessemer" / "data"]
    monkeypatch.setenv("BESSEMER_DATA", "~/data")
    assert places.roots()[0] == tmp_path / "data"


def test_a_named_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=f"--data-dir: there is no folder {tmp_path}/typo"):
        data.find("mnist", tmp_path / "typo")


def test_an_unfinished_download_is_no_data(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz.part").touch()
    with pytest.raises(DataError, match="mnist is not in"):
        data.find("mnist", tmp_path)


def test_embedded_data_lies_nowhere():
    assert data.find("digits") is None
