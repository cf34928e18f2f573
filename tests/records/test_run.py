import json

import numpy as np
import pytest

from bessemer.errors import FileError, UsageError
from bessemer.records import Evaluation, RunRecord, read_metrics


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


def test_of_two_answers_to_one_question_the_one_from_more_images_counts(tmp_path):
    def answer(count, threat="Linf:0.1", model="m"):
        labels = np.zeros(count, np.int64)
        return Evaluation(model, "d", "quick", threat, 0, ["0", "1"], np.arange(count), labels, labels, attacks=[])

    (tmp_path / "recipe.toml").write_text("")
    for evaluation in (answer(3), answer(8), answer(5), answer(2, "L2:0.5")):
        evaluation.save(tmp_path / "records")
    found = RunRecord.read(tmp_path).evaluations
    assert sorted((evaluation.threat, len(evaluation)) for evaluation in found) == [("L2:0.5", 2), ("Linf:0.1", 8)]
    answer(5, model="m, best").write(tmp_path / "records" / "best.json")  # the answer of another network
    found = RunRecord.read(tmp_path).evaluations
    assert {(evaluation.model, len(evaluation)) for evaluation in found} == {("m", 2), ("m", 8), ("m, best", 5)}
