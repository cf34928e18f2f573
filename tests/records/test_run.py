import json

import pytest

from bessemer.errors import FileError, UsageError
from bessemer.records import RunRecord, read_metrics


def test_a_run_is_read_from_its_folder(tmp_path):
    folder = tmp_path / "bang"
    folder.mkdir()
    (folder / "recipe.toml").write_text('[method]\nname = "bang"\nbeta = 1.5\n')
    (folder / "metrics.jsonl").write_text('{"iteration": 1, "loss": 2.5}\n{"iteration": 2, "loss": 1.5}\n')
    run = RunRecord.read(str(folder))
    assert run.name == "bang"
    assert run.recipe == {"method": {"name": "bang", "beta": 1.5}}
    assert [line["loss"] for line in run.metrics] == [2.5, 1.5]
    assert run.evaluations == []


def test_a_folder_without_a_recipe_is_no_run_and_the_message_says_how_to_make_one(tmp_path):
    with pytest.raises(UsageError, match=r"is no run: it has no recipe\.toml; train one with `bessemer train"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("content", [b"[method\n", b"name = \xff\n"])
def test_a_damaged_recipe_is_named(tmp_path, content):
    (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(FileError, match=r"recipe\.toml is damaged"):
        RunRecord.read(tmp_path)


def test_metrics_leave_out_the_line_that_a_kill_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"iteration": 1, "loss": 2.5})
    path.write_text(f"{line}\n{line[:10]}")
    assert read_metrics(path) == [{"iteration": 1, "loss": 2.5}]


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iter\n{"iteration": 2}\n')
    with pytest.raises(FileError, match=r"metrics\.jsonl is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
