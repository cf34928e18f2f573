"""A run with a mixture norm on the command line: trained, judged through each branch, and reported."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bessemer.cli.main import app
from bessemer.errors import BessemerError
from bessemer.records import Evaluation
from bessemer.training import load

ATTACK = '{name="pgd", threat="Linf:8/255", steps=1}'
RECIPE = f"""
[data]
name = "folder"
path = "images"
[model]
name = "resnet"
depth = 8
width = 4
classes = 3
[norm]
name = "mixture"
[method]
name = "mixture"
attack = {ATTACK}
[validation]
attack = {ATTACK}
[optimizer]
lr = 0.05
[training]
batch_size = 12
iterations = 6
validate_every = 2
[evaluation]
suite = "quick"
threat = "Linf:2/255"
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label in range(3):
            place = folder / "images" / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 80, (32, 32, 3)) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    (folder / "mix.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def bessemer(here, monkeypatch):
    monkeypatch.chdir(here)

    def call(line):
        done = CliRunner().invoke(app, shlex.split(line))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    return call


@pytest.fixture
def trained(bessemer):
    if not Path("mix").exists():
        bessemer("train mix.toml --out mix")
    return "mix"


def records():
    return {path.stem: Evaluation.read(path) for path in Path("mix/records").glob("*.json")}


def test_a_run_is_judged_through_its_adversarial_branch_unless_told_otherwise(bessemer, trained):
    bessemer("evaluate mix")
    (name,) = (stem for stem in records() if "through" not in stem and "best" not in stem)
    bessemer("evaluate mix --branch adversarial")
    one, other = records()[name], records()[f"adversarial-through-adversarial_{name}"]
    assert one.model == "mix"
    assert other.model == "mix: adversarial branch predicts, adversarial branch attacked"
    assert str(one.summary()) == str(other.summary())  # some figures of nothing are NaN


def test_all_pairs_of_branches_stand_beside_one_another(bessemer, trained):
    said = bessemer("evaluate mix --branch all")
    for predicting in ("clean", "adversarial"):
        for attacked in ("clean", "adversarial"):
            assert f"{predicting} branch predicts, {attacked} branch" in " ".join(said.split())
    found = {stem.split("_")[0]: each for stem, each in records().items() if "through" in stem}
    assert len(found) == 4
    # who predicts decides what is right without an attack; who is attacked, only what the attack finds
    clean = {stem: each.clean_accuracy().count for stem, each in found.items()}
    assert clean["clean-through-clean"] == clean["clean-through-adversarial"]
    assert clean["adversarial-through-clean"] == clean["adversarial-through-adversarial"]
    bessemer("report mix --out page.html")
    page = " ".join(Path("page.html").read_text().split())
    for predicting in ("clean", "adversarial"):
        for attacked in ("clean", "adversarial"):
            assert f"mix: {predicting} branch predicts, {attacked} branch attacked" in page


def test_the_best_checkpoint_has_records_of_its_own(bessemer, trained):
    bessemer("evaluate mix --checkpoint best")
    (best,) = (each for stem, each in records().items() if stem.startswith("best_"))
    assert best.model == "mix, best"
    assert load("mix", checkpoint="best").iteration in (2, 4, 6)


def test_a_recipe_that_asks_for_the_best_weights_has_them_named_so(bessemer, trained):
    recipe = Path(shutil.copytree("mix", "choosy")) / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('checkpoint = "last"', 'checkpoint = "best"'))
    said = bessemer("evaluate choosy --suite quick --samples 3")
    (best,) = Path("choosy/records").glob("best_quick*_3.json")
    assert Evaluation.read(best).model == "choosy, best"
    assert "has come to" not in said  # weights from before the end are what was asked for


def test_weights_from_before_the_end_have_a_record_of_their_own(bessemer):
    bessemer("train mix.toml --out early --set training.iterations=4")
    recipe = Path("early/recipe.toml")
    recipe.write_text(recipe.read_text().replace("iterations = 4", "iterations = 9"))
    assert "early has come to iteration 4 of 9" in " ".join(bessemer("evaluate early --samples 3").split())
    (record,) = Path("early/records").glob("*.json")
    assert record.name.startswith("iteration-4_quick")
    assert Evaluation.read(record).model == "early, iteration 4"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate mix --branch noisy", "'noisy' is not known; allowed: adversarial, clean"),
        ("evaluate mix --branch clean --attacked-branch noisy", "'noisy' is not known"),
        ("evaluate mix --attacked-branch clean", "--attacked-branch needs a --branch that predicts"),
        ("evaluate mix --branch all --attacked-branch clean", "leave out --attacked-branch"),
        ("evaluate mix --branch all --json a.json", "take one --branch, not all of them"),
        ("evaluate mix --checkpoint first", "checkpoint: 'first' is not known"),
        ("train mix.toml --out other --set norm.name=batch", "the model has no mixture norm; in the recipe, set"),
        ("train mix.toml --out other --set method.name=plain", "setting"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(bessemer, trained, line, said):
    with pytest.raises(BessemerError, match=".") as refused:
        bessemer(line)
    assert said in str(refused.value)
    assert refused.value.exit_code == 2
