"""BANG's Figures 2 and 4 at their smallest scale; and their claims on surfaces made up to refute them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bessemer.errors import DivergedError, UsageError
from bessemer.papers.bang import grids
from bessemer.papers.bang.networks import TABLES

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grids")


@needs_mnist
def test_the_smoke_scale_runs_end_to_end_and_is_not_done_twice(folder):
    result = grids.run("lenet", "smoke", folder)
    written = json.loads(result.write(folder).read_text())
    assert written["name"] == "bang-figure2"
    numbers = written["numbers"]
    assert (numbers["beta"], numbers["epsilon"]) == ([1.0, 1.6], [0.78, 0.84])
    assert np.shape(numbers["hc1_pass"]) == (2, 2)
    assert (folder / "bang-figure2-smoke.png").stat().st_size > 10_000
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len({path.parts[-3] for path in made}) == 5
    assert grids.run("lenet", "smoke", folder).numbers == numbers
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize("table", TABLES)
def test_at_full_scale_the_grid_is_the_papers(table):
    printed = TABLES[table]
    betas, epsilons = grids.axis(printed.beta, 1), grids.axis(printed.epsilon, 1)
    assert (len(betas), len(epsilons)) == (13, 13)
    assert (betas[0], betas[-1]) == printed.beta[:2]
    assert (epsilons[0], epsilons[-1]) == printed.epsilon[:2]
    points = len(grids.axis(printed.beta, grids.SCALES[table]["cpu"].every))
    assert points == {"lenet": 7, "cifar-quick": 4}[table]


def test_the_claims_can_fail():
    epsilons = [0.78, 0.81, 0.84]
    falling = np.array([[30.0, 31], [20, 21], [10, 11]])
    regular = {"accuracy": 99.0, "fgs_rate": 90.0, "hc1_pass": 0.75, "fgs_margin_rate": 99.0}
    as_published = {
        "accuracy": np.full((3, 2), 99.1),
        "fgs_rate": falling,
        "hc1_pass": np.full((3, 2), 0.5),
        "fgs_margin_rate": np.full((3, 2), 98.0),
    }
    assert all(claim.holds for claim in grids.claims(epsilons, as_published, regular))
    otherwise = {
        "accuracy": np.full((3, 2), 98.9),
        "fgs_rate": 100 - falling,
        "hc1_pass": np.full((3, 2), 0.8),
        "fgs_margin_rate": np.full((3, 2), 90.0),
    }
    assert not any(claim.holds for claim in grids.claims(epsilons, otherwise, regular)[1:])


def test_a_network_that_diverged_leaves_a_gap_and_no_more(tmp_path):
    epsilons, gap = [0.78, 0.81, 0.84], (2, 1)
    regular = {"accuracy": 99.0, "fgs_rate": 90.0, "hc1_pass": 0.75, "fgs_margin_rate": 99.0}
    values = {"accuracy": 99.1, "fgs_rate": 50.0, "hc1_pass": 0.5, "fgs_margin_rate": 98.0}
    surfaces = {name: np.full((3, 2), value) for name, value in values.items()}
    whole = grids.claims(epsilons, surfaces, regular)
    for surface in surfaces.values():
        surface[gap] = np.nan
    first, *rest = grids.claims(epsilons, surfaces, regular)
    assert not first.holds
    assert first.value == "the loss of 1 of 6 networks became infinite"
    assert [claim.holds for claim in rest] == [claim.holds for claim in whole[1:]]
    grids.picture([1.0, 1.6], epsilons, surfaces, regular, tmp_path / "gap.png", "a gap")
    assert (tmp_path / "gap.png").stat().st_size > 10_000


@needs_mnist
def test_a_training_that_diverges_is_a_gap_in_the_result(folder, monkeypatch):
    train = grids.training.train

    def diverging(recipe, place, **settings):
        if place.name == "beta-1.6-epsilon-0.84":
            raise DivergedError("the loss is nan")
        return train(recipe, place, **settings)

    monkeypatch.setattr(grids.training, "train", diverging)
    result = grids.run("lenet", "smoke", folder)
    assert json.loads(result.write(folder).read_text())["numbers"]["accuracy"][1][1] is None


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'cpu'"):
        grids.run("cifar-quick", "cpuu", tmp_path)
