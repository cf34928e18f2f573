"""BANG's Figure 1 at its smallest scale; and its claims on evaluations made up to refute them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bessemer.errors import UsageError
from bessemer.papers.bang import figure1
from bessemer.records import COLUMNS, AttackRows, Evaluation

DATA = Path(os.environ.get("BESSEMER_DATA", ""))
needs_data = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not (DATA / "mnist").is_dir() or not (DATA / "cifar-10-batches-bin").is_dir(),
    reason="MNIST and CIFAR-10 are not there: set BESSEMER_DATA to their folder",
)


@needs_data
def test_the_smoke_scale_draws_both_data_sets(tmp_path):
    written = json.loads(figure1.run("smoke", tmp_path).write(tmp_path).read_text())
    assert written["name"] == "bang-figure1"
    assert {title: set(rows) for title, rows in written["numbers"].items()} == {
        "LeNet on MNIST": {"R0", "B1"},
        "CIFAR10_quick on CIFAR-10": {"R0", "B0"},
    }
    drawn = written["numbers"]["LeNet on MNIST"]["R0"]["drawn_linf"]
    assert len(drawn) == 9  # there is no eight among the first twenty
    assert max(linf or 0 for linf in drawn) > 1
    assert (tmp_path / "bang-figure1-smoke.png").stat().st_size > 50_000


def evaluation(linf, wrong=0, name="R0"):
    """Made-up rows of HC1: distances in grey levels, 0 where nothing was found."""
    distance = np.asarray(linf, float) / 255
    label = np.zeros(len(distance), np.int64)
    columns = {column: np.zeros(len(distance), dtype) for column, dtype in COLUMNS.items()}
    columns["linf"][:] = distance
    columns["prediction"][:] = distance > 0
    prediction = label.copy()
    prediction[:wrong] = 1
    rows = AttackRows("HC1", "HC1", "minimal", "", columns, "Linf")
    return Evaluation(name, "none", "bang", "", 0, ["0", "1"], np.arange(len(label)), label, prediction, [rows])


def test_farther_is_asked_image_by_image_where_both_fall():
    regular, bang = evaluation([10, 20, 30, 40]), evaluation([20, 10, 0, 50], name="B0")
    assert str(figure1.farther(regular, bang)) == "66.7 % [20.8, 93.9]"
    assert figure1.farther(replace(regular, prediction=np.array([1, 0, 0, 0])), bang).total == 2


def test_the_claims_can_fail():
    near, far = evaluation([10] * 6), evaluation([20] * 6, name="B0")
    assert [claim.holds for claim in figure1.claims({"lenet": [near, far], "cifar-quick": [far, near]})] == [
        True,
        False,
    ]


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'full'"):
        figure1.run("ful", tmp_path)
