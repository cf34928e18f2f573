"""BANG as a training method: what a recipe can say of it, and what is refused."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.data import Batches, load
from bessemer.errors import UsageError
from bessemer.layers import balance
from bessemer.training import Bang, Recipe

TABLES = {
    "data": {"name": "digits"},
    "model": {"name": "digits-net"},
    "optimizer": {"lr": 0.1},
    "training": {"batch_size": 20, "iterations": 1},
}


def recipe(**settings):
    return Recipe.from_tables({**TABLES, "method": {"name": "bang", **settings}}, "tried")


def test_a_recipe_says_everything_of_the_adaptive_rule():
    found = recipe(contributing=0.5, keep_norm=True, epsilon={"*": 0.9})
    assert found.method == Bang(contributing=0.5, keep_norm=True, epsilon={"*": 0.9})
    assert Recipe.from_tables(found.tables, "tried").method == found.method


def test_a_recipe_that_says_nothing_of_it_means_the_fixed_rule():
    tables = recipe().tables["method"]
    assert (tables["contributing"], tables["keep_norm"]) == (0.0, False)


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match="method: BANG's contributing is a share of the batch"):
        recipe(contributing=share)


def test_the_method_hands_everything_on():
    batch = Batches(load("digits").train, 20, seed=3).next()
    settings = {"beta": 1.3, "epsilon": 0.9, "bias": False, "contributing": 0.97, "keep_norm": True}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    found = []
    for settings_of_both in (settings, {**settings, "contributing": 0.0}):
        for attached in (True, False):
            model.zero_grad()
            with ExitStack() as until_done:
                if attached:
                    Bang(**settings_of_both).prepare(model, until_done)
                else:
                    until_done.enter_context(balance(model, **settings_of_both))
                cross_entropy(model(batch.images), batch.labels).backward()
            found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert not torch.allclose(found[0], found[2])
