"""Training some layers: which weights move, and that nothing else does."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from bessemer import layers
from bessemer.attacks import PGD
from bessemer.data import Batches, load
from bessemer.errors import UsageError
from bessemer.threat import Linf
from bessemer.training import (
    SGD,
    Adversarial,
    Bang,
    LowRank,
    Mixture,
    OnlyLayers,
    Recipe,
    fit,
    parameter_groups,
    train,
    trainer,
)  # fmt: skip
from bessemer.training import load as load_run
from bessemer.training.schedules import Fixed
from bessemer.training.update import Update


@pytest.fixture
def model():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), block, nn.Flatten(), nn.Linear(6 * 36, 10))


def moved(model, method):
    """The names of the parameters and buffers that training changes."""
    before = copy.deepcopy(model.state_dict())
    optimizer = SGD(model.parameters(), 0.1, weight_decay=0.01)
    batches = Batches(load("digits").train, 32)

    def after_step(done, loss):
        model.eval().train()  # as a validation in between does
        return True

    fit(model, batches, method, optimizer, Fixed(), 0.1, 3, after_step)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


NORM = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("0", {"0.weight", "0.bias"}),
        ("2", {"2.0.weight", "2.0.bias", *(f"2.1.{name}" for name in NORM)}),
        ("2.0", {"2.0.weight", "2.0.bias"}),
        ("1", {f"1.{name}" for name in NORM}),
        ("[04]", {"0.weight", "0.bias", "4.weight", "4.bias"}),
    ],
)
def test_the_layers_that_match_move_and_no_others(match, expected, model):
    assert moved(model, OnlyLayers(match)) == expected


@pytest.mark.parametrize("own", [{"statistics": False}, {"affine": False}], ids=str)
def test_the_halves_of_a_mixture_norm_are_frozen_too(own, model):
    model = layers.mixture_norm(model, **own)
    assert moved(model, OnlyLayers("4", Mixture(PGD(Linf(0.1), steps=1)))) == {"4.weight", "4.bias"}


def test_a_frozen_batch_norm_uses_its_running_statistics(model):
    seen = []
    model[1].register_forward_hook(lambda layer, given, answer: seen.append((layer.training, given[0], answer)))
    moved(model, OnlyLayers("4"))
    assert len(seen) == 3
    for training, given, answer in seen:
        assert not training
        torch.testing.assert_close(answer, given / (1 + model[1].eps) ** 0.5)


@pytest.mark.parametrize("method", [Adversarial(PGD(Linf(0.1), steps=2)), Bang()], ids=["adversarial", "bang"])
def test_goes_around_other_methods(method, model):
    assert moved(model, OnlyLayers("0", inside=method)) == {"0.weight", "0.bias"}


def test_goes_around_a_low_rank_update(model):
    before = model[0].weight.detach().clone()
    with ExitStack() as until_done:
        method = OnlyLayers("0", inside=LowRank(1))
        prepared = method.prepare(model, until_done)
        optimizer = SGD(parameter_groups(prepared, []), 0.1)
        update, batches = Update(prepared, method, optimizer), Batches(load("digits").train, 32)
        trainer.loop(prepared, batches, update, optimizer, Fixed(), 0.1, 3, lambda *_: True)
    assert torch.linalg.matrix_rank((model[0].weight - before).flatten(1).double(), rtol=1e-5) == 1


def test_the_model_comes_back_as_it_was(model):
    moved(model, OnlyLayers("0"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    before = model[1].running_mean.clone()
    model(torch.rand(4, 1, 8, 8))
    assert not torch.equal(before, model[1].running_mean)


def test_a_pattern_that_matches_nothing_is_refused(model):
    with pytest.raises(UsageError, match=r"only-layers: 'conv1' matches none of the layers 0, 1, 2\.0, 2\.1, 4"):
        moved(model, OnlyLayers("conv1"))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    changes = ["training.iterations=10", "training.checkpoint_every=4", "training.validate_every=5"]
    recipe = Recipe.named("digits", [*changes, 'method={name="only-layers", match="conv*"}'])
    seen = []
    train(recipe, tmp_path / "stopped", watch=seen.append, stop=lambda: len(seen) >= 6)
    train(recipe, tmp_path / "stopped", resume=True)
    train(recipe, tmp_path / "quiet")
    one, other = (load_run(tmp_path / name).state_dict() for name in ("stopped", "quiet"))
    assert all(torch.equal(one[name], other[name]) for name in one)
