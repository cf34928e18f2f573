"""Low-rank purification at its smallest scale; and its claims on figures made up to refute them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bessemer.errors import UsageError
from bessemer.papers.feature_purification import low_rank
from bessemer.records import COLUMNS, AttackRows, Evaluation

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)
IMAGES = 1000
PLAN = low_rank.Scale("alexnet", (1, 4, 16), ("conv1", "conv2"), IMAGES)


@needs_mnist
def test_the_smoke_scale_runs_end_to_end_and_is_not_done_twice(tmp_path):
    result = low_rank.run("smoke", tmp_path)
    written = json.loads(result.write(tmp_path).read_text())
    assert written["name"] == "purification-low-rank"
    assert set(written["numbers"]) == {"clean", "linf-8", "low-rank-1", "low-rank-4", "only-conv2"}
    assert written["numbers"]["low-rank-1"]["images"] == 20
    assert len(written["claims"]) == 7
    assert (tmp_path / "purification-low-rank-smoke.png").read_bytes().startswith(b"\x89PNG")
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    made |= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("records/*.json")}
    assert low_rank.run("smoke", tmp_path).numbers == result.numbers
    assert {path: path.stat().st_mtime_ns for path in made} == made


def evaluation(standing, margin=None):
    """Made-up rows: the first so many of 1,000 images stand under PGD, and under its twin on the margin loss."""

    def rows(name, count):
        columns = {column: np.zeros(IMAGES, dtype) for column, dtype in COLUMNS.items()}
        columns["prediction"][count:] = 1
        return AttackRows(name, name, "bounded", "Linf:0.1", columns, "")

    label = np.zeros(IMAGES, np.int64)
    found = [rows("PGD-20", standing), rows("PGD-20, margin loss", standing if margin is None else margin)]
    return Evaluation("made up", "none", "made-up", "", 0, ["0", "1"], np.arange(IMAGES), label, label.copy(), found)


# a world in which every claim holds
HELD = {
    "clean": 10, "linf-8": 410, "low-rank-1": 110, "low-rank-4": 250, "low-rank-16": 400,
    "only-conv1": 100, "only-conv2": 200,
}  # fmt: skip


def held(**changed):
    standing = HELD | {name.replace("_", "-"): count for name, count in changed.items()}
    found = {name: evaluation(count) for name, count in standing.items()}
    return [claim.holds for claim in low_rank.claims(found, PLAN)]


def test_every_claim_holds_where_it_should():
    assert held() == [True] * 7


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        (0, {"linf_8": 100}),
        (1, {"low_rank_16": 350}),
        (2, {"low_rank_4": 150}),
        (3, {"low_rank_1": 12}),
        (4, {"low_rank_4": 90}),
        (4, {"low_rank_1": 250, "low_rank_4": 250, "low_rank_16": 250}),
        (5, {"only_conv2": 380}),
        (6, {"only_conv2": 400}),
    ],
)
def test_each_claim_can_fail(place, changed):
    assert held(**changed)[place] is False


def test_where_training_wins_nothing_nothing_is_a_share_of_it():
    assert held(linf_8=5)[:3] == [False] * 3


def test_robust_means_under_both_attacks():
    one, other = evaluation(500, margin=300), evaluation(400)
    assert low_rank.robust(one).count == 300
    assert low_rank.outlasts(other, one)
    assert not low_rank.outlasts(one, other)
    assert not low_rank.outlasts(evaluation(309), evaluation(300))  # less than a point


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'cpu'"):
        low_rank.run("cpuu", tmp_path)
