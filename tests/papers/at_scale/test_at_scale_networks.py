"""How the at-scale networks are trained, what is read off their records, and two reproductions end to end."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from planted import network
from torch import nn

from bessemer import layers, training
from bessemer.attacks import PGD
from bessemer.errors import UsageError
from bessemer.evaluation import evaluate
from bessemer.models import build
from bessemer.models.cost import cost
from bessemer.papers import EXPERIMENTS, home
from bessemer.papers.at_scale import adv_prop, denoising, depth, mixture, networks, pairing, published, ratio
from bessemer.papers.at_scale.networks import SCALES, Work, recipe
from bessemer.records import BUDGETS
from bessemer.threat import Linf
from bessemer.training.methods import METHODS

DATA = Path(os.environ.get("BESSEMER_DATA", ""))
needs_cifar = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not (DATA / "cifar-10-batches-bin").is_dir(),
    reason="CIFAR-10 is not there: set BESSEMER_DATA to its folder",
)
MODULES = (ratio, mixture, depth, pairing, denoising, adv_prop)
CPU = SCALES["cpu"]


@pytest.mark.parametrize("scale", SCALES)
def test_every_plan_is_a_recipe_whose_method_can_train_its_network(scale):
    for name in SCALES[scale].plans():
        chosen = recipe(name, SCALES[scale], seed=2)
        assert (chosen.seed, chosen.training.iterations) == (2, SCALES[scale].iterations)
        with torch.device("meta"), ExitStack() as until_done:
            model = chosen.norm.installed(build(chosen.model[0], **chosen.model[1]))
            chosen.method.prepare(model, until_done)  # refuses a network without the branches it trains
        branched = ("mixture", "pairing-mixture", "advprop")
        assert bool(layers.branches(model)) is (name.startswith(branched) and name != "advprop-single")


def test_plans_differ_in_what_they_say():
    def method(name):
        return recipe(name, CPU).method

    attack = PGD(Linf(8 / 255), steps=5, step_size=2 / 255, last=True)
    for percent in (0, 20, 40, 60, 80, 100):
        assert method(f"share-{percent}") == METHODS["adversarial"](attack=attack, clean_share=percent / 100)
    assert method("mixture") == METHODS["mixture"](attack=attack)
    assert method("mixture-affine") == method("mixture-statistics") == method("mixture")
    norms = {name: recipe(name, CPU).norm for name in ("mixture", "mixture-affine", "mixture-statistics")}
    separate = {name: (norm.statistics, norm.affine) for name, norm in norms.items()}
    assert separate == {
        "mixture": (True, True),
        "mixture-affine": (False, True),
        "mixture-statistics": (True, False),
    }
    assert method("group-100") == method("share-100")
    assert recipe("group-100", CPU).tables["norm"]["name"] == "group"
    assert method("pairing") == method("pairing-mixture") == METHODS["logit-pairing"](attack=attack)
    assert method("clean") == METHODS["plain"]()
    weak = PGD(Linf(1 / 255), steps=1, step_size=1 / 255, last=True)
    assert method("advprop-weak") == METHODS["adv-prop"](attack=weak)
    strong = PGD(Linf(4 / 255), steps=5, step_size=1 / 255, last=True)
    assert method("advprop-single").attack == method("advprop").attack == strong
    assert method("depth-26") == METHODS["consistent-norm"](start=624, inside=method("share-0"))
    assert method("depth-8-usual") == method("share-0")
    assert recipe("denoise-mean", CPU).model[1] == {
        **recipe("share-0", CPU).model[1],
        "denoising": "mean",
        "denoise_from": 2,
    }


def test_the_scale_cpu_keeps_to_its_limits():
    """As `docs` promise: ten epochs of 10,000 images, 15 million multiply-adds, the non-local block a little more."""
    for name in CPU.plans():
        chosen = recipe(name, CPU)
        assert chosen.training.iterations * chosen.training.batch_size <= 10 * 10_000
        most = 17 if name == "denoise-gaussian" else 15
        assert cost(lambda chosen=chosen: build(chosen.model[0], **chosen.model[1])).multiply_adds < most * 1e6


def test_everything_wanted_is_known_and_everything_known_is_wanted():
    for scale, plan in SCALES.items():
        wanted = {name.partition("/")[0] for module in MODULES for name in module.WANTED[scale]}
        assert wanted <= set(plan.plans())
        assert scale == "smoke" or wanted == set(plan.plans())
    for module in MODULES:
        assert EXPERIMENTS[module.NAME] is module.run
        assert home(module.NAME, "cpu") == home(module.NAME, "full") == "at-scale"
    printed = (published.RATIO, published.MIXTURE, published.PAIRING, published.DENOISING, published.ADVPROP)
    for rows in printed:
        assert {name.partition("/")[0] for name in rows} <= set(CPU.plans())
        assert all(set(row) <= {"clean", *map(str, BUDGETS)} for row in rows.values())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_an_unknown_scale_is_refused(module, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'full'"):
        module.run("ful", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_network_is_refused():
    with pytest.raises(UsageError, match="network: 'share-10' is not known; did you mean 'share-100'"):
        recipe("share-10", CPU)


def test_who_stands_after_how_many_steps():
    found = network(80, {10: 60, 50: 40, 2000: 30}, images=10)
    assert [int(found.standing(steps).sum()) for steps in (5, 10, 49, 50, 1999, 2000)] == [8, 6, 6, 4, 4, 3]
    shares = found.long.over_budgets()
    assert [round(10 * shares[steps].value) for steps in (10, 20, 50, 2000)] == [6, 6, 4, 3]
    assert found.right().sum() == found.unattacked().sum() == 8
    assert networks.lost([found], 10, 2000)[0].sum() == 3


def test_a_short_attack_is_the_beginning_of_a_long_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    images = torch.rand(60, 3, 4, 4)
    labels = model(images).argmax(1)
    long, short = (evaluate(model, (images, labels), networks.climbing(steps)) for steps in (100, 30))
    read = networks.Found(long, long)
    assert 0 < short.survivors("PGD-30").sum() < 60
    assert (read.standing(30) == short.survivors("PGD-30")).all()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("at-scale")


@needs_cifar
def test_the_smoke_scale_runs_end_to_end_and_nothing_is_done_twice(runs):
    result = ratio.run("smoke", runs, DATA)
    written = json.loads(result.write(runs).read_text())
    assert set(written["numbers"]) == {"share-0", "share-100"}
    own = written["numbers"]["share-0"]
    assert len(own["ours"]["clean"]) == len(own["ours"]["pgd"]["20"]) == 2
    assert own["images"] == {"clean": 32, "pgd": 16}
    assert own["published"]["2000"] == "39.2"
    assert [line[0] for line in written["table"][1:]] == [row["words"] for row in written["numbers"].values()]
    assert "(62.1)" in written["table"][1][1]
    assert (runs / "at-scale-ratio-smoke.png").read_bytes().startswith(b"\x89PNG")
    made = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.suffix in (".safetensors", ".json")}
    trained, asked = [], []
    again = mixture.run(
        "smoke",
        runs,
        DATA,
        lambda name: lambda moment: trained.append(name),
        lambda name: lambda stage: asked.append(name),
    )
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert set(trained) == {"clean-8-0", "mixture-8-0"}  # the others were there
    assert not [name for name in asked if name.startswith("share")]
    assert again.numbers["share-0"]["ours"]["clean"] == own["ours"]["clean"][:1]
    assert len(again.numbers["pairs"]) == 5
    assert len(again.claims) == len(mixture.claims(_alike(again), SCALES["smoke"])) + 2


def _alike(result):
    return {name: [network(50, {20: 20})] for name in result.numbers if name != "pairs"}


@needs_cifar
def test_each_branch_is_attacked_and_predicts(runs):
    work = Work(SCALES["smoke"], runs, DATA)
    found = mixture.pairs(work, 1)
    folder = networks.trained(work, "mixture", 0)
    model = {branch: training.load(folder, branch=branch) for branch in ("clean", "adversarial")}
    images, labels = work.dataset.test.at(slice(work.scale.samples))
    attack = networks.climbing(work.scale.between).attacks["PGD-10"]
    assert len(found) == 4
    for (predicting, attacked), (stands,) in found.items():
        with torch.no_grad():
            made = attack(model[attacked], images, labels)
            right = [model[predicting](each).argmax(1) == labels for each in (images, made)]
        assert stands.tolist() == (right[0] & right[1]).tolist()
