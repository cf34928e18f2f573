"""`bessemer data`, as it is typed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from bessemer import data
from bessemer.cli.data import app
from bessemer.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """Data is found only where the test says."""
    monkeypatch.delenv("BESSEMER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def run(*words):
    """What is printed; what is refused is raised, as the main program expects it."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stdout


def test_list_names_every_data_set_with_its_size_and_where_it_is(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    lines = {line.split()[0]: line for line in run("list", "--data-dir", str(tmp_path)).splitlines()}
    assert set(data.SOURCES) < set(lines)
    assert "1,397 + 400" in lines["digits"]
    assert "60,000 + 10,000" in lines["mnist"]
    assert "`bessemer data get mnist` downloads it" in lines["mnist"]
    assert str(tmp_path / "cifar-10-batches-py") in lines["cifar10"]


def test_check_without_a_name_checks_what_is_there_and_says_what_is_not():
    lines = run("check").splitlines()
    assert lines[0] == "digits: 1,397 training and 400 test images, 10 classes: as published"
    assert lines[1] == "mnist: not here; `bessemer data get mnist` downloads it"
    assert len(lines) == 3


def test_check_of_a_missing_data_set_is_refused():
    with pytest.raises(DataError, match="bessemer data get mnist"):
        run("check", "mnist")


def test_check_goes_on_after_a_damaged_data_set_and_then_fails(tmp_path, capsys):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"cut")
    result = CliRunner().invoke(app, ["check", "--data-dir", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert str(result.exception).startswith("not as published: mnist")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["digits:", "mnist:", "cifar10:"]
    assert "is damaged" in result.stdout


@pytest.mark.parametrize("words", [("check", "minst"), ("get", "minst")])
def test_a_misspelt_name_is_answered_with_the_nearest(words):
    with pytest.raises(UsageError, match="did you mean 'mnist'"):
        run(*words)


def test_what_has_nothing_published_cannot_be_checked_or_downloaded():
    with pytest.raises(UsageError, match="folder: nothing is published to compare with"):
        run("check", "folder")
    with pytest.raises(UsageError, match="digits: there is nothing to download"):
        run("get", "digits")


def test_get_shows_progress_and_prints_the_verdict(monkeypatch):
    def pretend(name, data_dir, progress):
        for done in (0, 50, 100):
            progress("file.gz", done, 100)
        return f"{name}: as published"

    monkeypatch.setattr(data, "get", pretend)
    result = CliRunner().invoke(app, ["get", "mnist"], catch_exceptions=False)
    assert result.stdout == "mnist: as published\n"
    assert "file.gz" in result.stderr
    assert "100%" in result.stderr


@pytest.mark.parametrize("words", [("--help",), ("list", "--help"), ("check", "--help"), ("get", "--help")])
def test_help_is_given(words):
    assert "--help" in run(*words)
