"""Recipes: complete, and answered in words where they are wrong."""

import tomllib

import pytest

from bessemer.attacks import PGD, GradientAttack, parts
from bessemer.errors import UsageError
from bessemer.threat import Linf
from bessemer.training import Adversarial, Bang, Plain, Recipe, recipes
from bessemer.training.schedules import Inv

MINIMAL = {
    "data": {"name": "digits"},
    "model": {"name": "digits-net"},
    "optimizer": {"lr": 0.1},
    "training": {"batch_size": 10, "iterations": 20},
}
NESTED = {
    "name": "bang",
    "epsilon": {"conv*": 0.8, "*": 0.5},
    "inside": {
        "name": "adversarial",
        "clean_share": 1,
        "attack": {"name": "pgd", "threat": "Linf:8/255", "step_size": "2/255", "steps": 5},
    },
}


@pytest.mark.parametrize("name", recipes())
def test_every_shipped_recipe_is_valid_and_survives_being_written(name):
    recipe = Recipe.named(name)
    again = Recipe.from_tables(tomllib.loads(recipe.to_toml()), name)
    assert again == recipe
    assert recipe.tables["about"]


def test_defaults_are_filled_in():
    recipe = Recipe.from_tables(MINIMAL, "x")
    assert recipe.method == Plain()
    assert recipe.tables["schedule"] == {"name": "fixed"}
    assert recipe.tables["optimizer"] == {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "nesterov": False,
        "factors": [],
    }
    assert recipe.tables["model"] == {"name": "digits-net", "classes": 10, "dropout": 0.0}


def test_methods_and_attacks_nest():
    recipe = Recipe.from_tables({**MINIMAL, "method": NESTED}, "x")
    attack = PGD(Linf(8 / 255), steps=5, step_size=2 / 255)
    expected = Bang(epsilon={"conv*": 0.8, "*": 0.5}, inside=Adversarial(attack, clean_share=1.0))
    assert recipe.method == expected
    assert Recipe.from_tables(tomllib.loads(recipe.to_toml()), "x").method == expected


def test_the_parts_of_an_attack_nest_too():
    attack = {
        "name": "gradient",
        "threat": "Linf:16/255",
        "steps": 30,
        "aim": {"name": "random-class"},
        "start": {"name": "sometimes-natural", "share": 0.3},
        "step_size": {"name": "at-least", "size": "1/255"},
    }
    recipe = Recipe.from_tables({**MINIMAL, "method": {"name": "adversarial", "attack": attack}}, "x")
    expected = GradientAttack(
        Linf(16 / 255),
        30,
        aim=parts.RandomClass(),
        start=parts.SometimesNatural(0.3),
        step_size=parts.AtLeast(1 / 255),
    )
    assert recipe.method == Adversarial(expected)
    assert recipe.tables["method"]["attack"]["projection"] == {"name": "ball"}
    assert Recipe.from_tables(tomllib.loads(recipe.to_toml()), "x") == recipe


def test_settings_can_be_changed_from_the_command_line():
    recipe = Recipe.named("digits", ["schedule.name=inv", "schedule.gamma=1e-3", "seed=7", "training.shuffle=false"])
    assert recipe.schedule == Inv(gamma=1e-3)
    assert (recipe.seed, recipe.training.shuffle) == (7, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["method.name=bnag"], r"method\.name: method: 'bnag' is not known; did you mean 'bang'\?"),
        (["method.name=bang", "method.betta=2"], r"method: setting: 'betta' is not known; did you mean 'beta'\?"),
        (["trainign.iterations=5"], r"section: 'trainign' is not known; did you mean 'training'\?"),
        (["training.iterations=many"], r"training\.iterations: .*valid integer, found 'many'"),
        (["training.iterations=0"], "iterations should be at least 1"),
        (["optimizer.lr=true"], r"optimizer\.lr: .*valid number, found True"),
        (["evaluation.threat=Linf:8"], r"evaluation\.threat: .*8/255"),
        (["evaluation.threat=3"], "should be text such as"),
        (["method.name=adversarial"], "the setting attack is missing"),
        (["method.name=adversarial", 'method.attack={name="pgd", threat="L3:1"}'], "did you mean"),
        (["method.name=adversarial", 'method.attack={name="pgd", threat="Linf:0.1", steps=0}'], "PGD: needs"),
        (["method.name=adversarial", 'method.attack={name="gradient", threat="Linf:0.1", aim={name="random"}}'],
         r"method\.attack\.aim\.name: aim: 'random' is not known; did you mean 'random-class'\?"),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], "optimizer: nesterov is a kind of momentum"),
        (["augmentation.crop=-1"], "augmentation: .*negative"),
        (["optimizer.factors=3"], r"should be a list of tables"),
        (["seed=1.5"], "seed: .*integer"),
        (["training.shuffle=1979-05-27"], "date or time has no place"),
        (["method.name=bang", "method.beta=-1"], r"method: BANG's beta should be a number from 0 upwards"),
        (["method.name=bang", "method.epsilon=nan"], r"method: BANG's epsilon should be a number from 0 upwards"),
        (["data=digits"], "data should be a section"),
        (["no equals"], "--set takes KEY=VALUE"),
        (["data.name.x=1"], "name is a value, not a section"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_what_would_be_right(changes, said):
    with pytest.raises(UsageError, match=said):
        Recipe.named("digits", changes)


def test_missing_parts_and_files_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"section \[optimizer\] is missing"):
        Recipe.from_tables({key: MINIMAL[key] for key in ("data", "model", "training")}, "x")
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        Recipe.named("digit")
    with pytest.raises(UsageError, match="cannot be read"):
        Recipe.named(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(UsageError, match="is no TOML"):
        Recipe.named(str(tmp_path / "bad.toml"))
