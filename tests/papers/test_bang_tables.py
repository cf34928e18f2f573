"""BANG's tables at their smallest scale; and their claims on rows made up to refute them."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bessemer.data import Split
from bessemer.errors import UsageError
from bessemer.papers.bang import tables
from bessemer.papers.bang.networks import TABLES
from bessemer.records import Evaluation

DATA = Path(os.environ.get("BESSEMER_DATA", ""))
needs_data = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not (DATA / "mnist").is_dir() or not (DATA / "cifar-10-batches-bin").is_dir(),
    reason="MNIST and CIFAR-10 are not there: set BESSEMER_DATA to their folder",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@needs_data
@pytest.mark.parametrize(("table", "number", "published"), [("lenet", 1, 3.51), ("cifar-quick", 2, 34.27)])
def test_the_smoke_scale_runs_end_to_end_and_is_not_done_twice(runs, table, number, published):
    result = tables.run(table, "smoke", runs)
    written = json.loads(result.write(runs).read_text())
    assert written["name"] == f"bang-table{number}"
    assert set(written["numbers"]) == {"R0", "B0"}
    assert written["numbers"]["B0"]["published"]["fgs_rate"] == published
    assert written["numbers"]["R0"]["ours"]["images"] == tables.SCALES[table]["smoke"].samples
    stalled = written["numbers"]["B0"]["ours"]["stalling"]
    assert stalled["effective"] <= stalled["effective_balanced"] <= 100
    assert "effective_balanced" not in written["numbers"]["R0"]["ours"]["stalling"]
    assert [line[0] for line in written["table"]] == ["", "R0", "B0"]
    assert f"({published:g})" in written["table"][2][2]
    assert (runs / f"bang-table{number}-smoke.png").read_bytes().startswith(b"\x89PNG")
    began = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    again = tables.run(table, "smoke", runs)
    assert again.numbers == result.numbers
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")} == began


@needs_data
def test_the_claims_can_fail(runs):
    tables.run("lenet", "smoke", runs)
    regular, bang = (
        tables.Found(
            Evaluation.read(runs / f"lenet-{name}-150" / "records" / "bang_mnist_50.json"),
            Evaluation.read(runs / f"lenet-{name}-150" / "records" / "bang-fgs-float64_mnist_20.json"),
            {},
            np.zeros(50, bool),
        )
        for name in ("R0", "B0")
    )
    claims = partial(tables.claims, "lenet")
    held = {claim.text: claim.holds for claim in claims({"R0": regular, "B0": bang})}
    swapped = {claim.text: claim.holds for claim in claims({"R0": bang, "B0": regular})}
    assert next(iter(held.values())) is False  # 150 iterations do not make 99 %
    assert held != swapped
    rays = bang.rays
    immune = replace(
        rays, attacks=[replace(rows, columns={**rows.columns, "prediction": rays.label}) for rows in rays.attacks]
    )
    texts = [claim.text for claim in claims({"R0": regular, "B0": replace(bang, rays=immune)}) if claim.holds]
    assert any("FGS succeeds against less than 10 %" in text for text in texts)
    assert not any("cannot underflow" in text for text in texts)


@pytest.mark.parametrize("table", TABLES)
def test_a_row_is_trained_as_the_paper_says(table):
    printed = TABLES[table]
    recipe = printed.recipe("B2")
    assert (recipe.method.beta, recipe.method.epsilon) == printed.rows["B2"].setting
    assert recipe.method.misclassified == {"lenet": 1.0, "cifar-quick": 0.5}[table]
    assert recipe.training.iterations == {"lenet": 10_000, "cifar-quick": 20_000}[table]
    assert recipe.training.batch_size == {"lenet": 64, "cifar-quick": 100}[table]
    assert recipe.training.keep_every == 0
    assert printed.recipe(printed.evolving[1]).training.keep_every == printed.every
    assert printed.recipe("R1").seed != printed.recipe("R0").seed
    with pytest.raises(UsageError, match=f"network of Table {printed.number}"):
        printed.recipe("B6")


def test_a_shorter_training_drops_its_rate_as_early():
    full, short = (TABLES["cifar-quick"].recipe("R0", iterations) for iterations in (None, 4000))
    assert full.schedule.at == (18_000, 19_000)
    assert short.schedule.at == (3600, 3800)
    assert short.training.keep_every == 200
    assert short.training.iterations == 4000


def test_a_softmax_is_exactly_one_from_a_gap_of_seventeen_on():
    """1 + e^-gap is 1 in float32 where e^-gap is at most half of its smallest step above 1, 2^-24 = e^-16.6."""
    gaps = torch.tensor([10.0, 16.0, 17.0, 60.0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([gaps, torch.zeros(4)]))
    split = Split(torch.eye(4).view(4, 1, 2, 2), torch.zeros(4, dtype=torch.long))
    assert tables.certain(model, split, 4, size=3).tolist() == [False, False, True, True]
    assert tables.certain(model, split, 2).tolist() == [False, False]


@needs_data
def test_fgs_fails_where_the_softmax_is_exactly_one(runs):
    tables.run("lenet", "smoke", runs)
    rays = Evaluation.read(runs / "lenet-R0-150" / "records" / "bang_mnist_50.json")
    turned = rays.right & ~rays.survivors("FGS")
    sure = np.arange(50) % 2 == 0
    found = tables.where_uncertain(tables.Found(rays, rays, {}, sure))
    assert found["rate"] == round(100 * (turned & ~sure).sum() / rays.right.sum(), 2)
    assert found["linf"][0] == round(255 * rays.attack("FGS")["linf"][turned & ~sure].mean(), 2)


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'full'"):
        tables.run("lenet", "ful", tmp_path)
