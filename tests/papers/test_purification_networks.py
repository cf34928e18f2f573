"""The networks that the purification figures share: their recipes at every scale, and training at the smallest."""

import os
from pathlib import Path

import pytest
import torch

from bessemer.attacks import PGD
from bessemer.errors import UsageError
from bessemer.papers.feature_purification import networks
from bessemer.threat import L2, Linf
from bessemer.training import Adversarial, Bang, LowRank, OnlyLayers, Plain, initial_weights, load, starting_weights

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)

EVERY = [(scale, architecture) for scale, plans in networks.PLANS.items() for architecture in plans]
every_plan = pytest.mark.parametrize(("scale", "architecture"), EVERY)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@needs_mnist
def test_a_network_is_trained_once_and_starts_from_the_clean_one(tmp_path):
    seen = []

    def watch(name):
        return lambda moment: seen.append(name)

    folder = networks.run("lenet", "linf-8", "smoke", tmp_path, watch=watch)
    assert folder == tmp_path / "lenet-linf-8"
    assert seen == ["lenet-clean"] * 100 + ["lenet-linf-8"] * 20
    assert load(folder).recipe.method == Adversarial(PGD(Linf(0.2), steps=2))
    clean = load(tmp_path / "lenet-clean").state_dict()
    assert same(starting_weights(folder), clean)
    assert same(initial_weights(folder), starting_weights(tmp_path / "lenet-clean"))
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert networks.run("lenet", "linf-8", "smoke", tmp_path, watch=watch) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == made
    assert len(seen) == 120


@every_plan
def test_every_network_has_a_recipe(scale, architecture):
    runs = Path("runs")

    def method(which):
        return networks.recipe(architecture, which, scale, runs).method

    digits = architecture == "lenet"
    steps = networks.PLANS[scale][architecture].steps
    strongest = Adversarial(PGD(Linf(0.2 if digits else 8 / 255), steps=steps))
    assert method("clean") == method("clean-other") == Plain()
    assert method("linf-8") == strongest
    assert method("linf-4") == Adversarial(PGD(Linf(0.1 if digits else 4 / 255), steps=steps))
    assert method("l2-0.25") == Adversarial(PGD(L2(1.0 if digits else 0.25), steps=steps))
    assert method("l2-0.5") == Adversarial(PGD(L2(2.0 if digits else 0.5), steps=steps))
    assert isinstance(method("bang"), Bang)
    assert method("low-rank-7") == LowRank(7, inside=strongest)
    assert method("only-conv1") == OnlyLayers("conv1", inside=strongest)


@every_plan
def test_clean_networks_are_independent_and_all_others_start_from_the_first(scale, architecture):
    clean, other = (networks.recipe(architecture, which, scale, Path("runs")) for which in networks.CLEAN)
    assert clean.seed != other.seed
    assert clean.init == other.init == ""
    robust = networks.recipe(architecture, "linf-4", scale, Path("runs"))
    assert robust.init == str(Path("runs") / f"{architecture}-clean")
    assert robust.tables["model"] == clean.tables["model"]
    assert robust.tables["data"] == clean.tables["data"]


@pytest.mark.parametrize(
    ("architecture", "which", "scale", "said"),
    [
        ("alexnet", "clean", "cpuu", "scale: 'cpuu' is not known; did you mean 'cpu'"),
        ("lenet", "clean", "cpu", "architecture at the scale cpu: 'lenet' is not known"),
        ("alexnet", "linf-9", "cpu", r"network: 'linf-9' is not known; allowed: clean, clean-other, linf-4"),
        ("alexnet", "low-rank-x", "cpu", "network: 'low-rank-x' is not known"),
        ("alexnet", "low-rank-0", "cpu", "rank should be a whole number from 1 upwards"),
    ],
)
def test_a_name_that_is_none_is_refused(architecture, which, scale, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        networks.run(architecture, which, scale, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_ball_of_a_network():
    assert networks.threat("alexnet", "linf-4") == "Linf:4/255"
    assert networks.threat("alexnet", "only-conv1") == networks.threat("alexnet", "low-rank-2") == "Linf:8/255"
    assert networks.threat("lenet", "low-rank-2") == "Linf:0.2"
    assert networks.threat("alexnet", "clean") == networks.threat("alexnet", "bang") == ""
