"""What lies beyond BANG's paper, at its smallest scale; and claims on figures made up to refute them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bessemer.errors import UsageError
from bessemer.papers.bang import beyond
from bessemer.records import COLUMNS, AttackRows, Evaluation

DATA = Path(os.environ.get("BESSEMER_DATA", ""))
needs_cifar = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not (DATA / "cifar-10-batches-bin").is_dir(),
    reason="CIFAR-10 is not there: set BESSEMER_DATA to its folder",
)


@needs_cifar
def test_the_smoke_scale_runs_end_to_end_and_is_not_done_twice(tmp_path):
    result = beyond.run("smoke", tmp_path)
    written = json.loads(result.write(tmp_path).read_text())
    assert set(written["numbers"]) == {"regular", "BANG"}
    assert len(written["numbers"]["BANG"]["standing"]) == 2
    assert [line[0] for line in written["table"]] == ["", *written["numbers"]]
    assert len(written["claims"]) == 2
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert beyond.run("smoke", tmp_path).numbers == result.numbers
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize("name", beyond.VARIANTS)
def test_every_variant_is_a_recipe_at_every_scale(name):
    for plan in beyond.SCALES.values():
        recipe = beyond.recipe(name, 1, plan)
        assert recipe.seed == 1
        assert recipe.training.iterations == plan.iterations
        assert max(getattr(recipe.schedule, "at", (0,))) < plan.iterations
        assert recipe.tables["method"]["name"] == ("bang" if "BANG" in name else recipe.tables["method"]["name"])
    assert beyond.VARIANTS[name].reference in beyond.VARIANTS


def test_a_variant_differs_from_its_reference_in_what_its_name_says():
    plan = beyond.SCALES["cpu"]
    smooth = beyond.recipe("BANG, smoothed labels", 0, plan)
    assert smooth.method.inside.label_smoothing == 0.1
    assert smooth.method.epsilon == beyond.recipe("BANG", 0, plan).method.epsilon
    assert beyond.recipe("regular, smoothed labels", 0, plan).method.label_smoothing == 0.1
    assert beyond.recipe("BANG, misclassified 0", 0, plan).method.misclassified == 0
    assert beyond.recipe("adversarial, BANG", 0, plan).method.inside == beyond.recipe("adversarial", 0, plan).method


def seeds(standing, distance):
    figures = {"accuracy": 70.0, "fgs_rate": 90.0, "fgs_margin_rate": 95.0, "zero_gradients": 0.0}
    return [{**figures, "standing": one, "mean_l2": distance} for one in standing]


def test_a_network_that_gets_nothing_right_has_figures_too():
    label = np.zeros(4, np.int64)
    columns = {column: np.zeros(4, dtype) for column, dtype in COLUMNS.items()}
    columns["prediction"] += 1
    rows = [AttackRows(name, name, "minimal", "", columns, "L2") for name in ("FGS", "FGS, margin loss")]
    nothing = Evaluation("wrong", "none", "s", "", 0, ["0", "1"], np.arange(4), label, label + 1, rows)
    figures = beyond.Found(nothing, nothing, nothing).figures()
    assert set(figures.values()) == {0.0}


def test_better_needs_every_seed_to_agree():
    reference = seeds([10.0, 12.0, 14.0], 0.1)
    for standing, holds in (([13.0, 15.1, 17.0], True), ([13.0, 11.0, 17.0], False), ([9.0, 11.0, 13.0], False)):
        found = {"regular": reference, "BANG": seeds(standing, 0.1)}
        more, farther = beyond.claims(found)
        assert more.holds is holds
        assert farther.holds is False
    assert beyond.claims({"regular": reference[:1], "BANG": seeds([90.0], 1.0)})[0].holds is False


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'full'"):
        beyond.run("ful", tmp_path)
