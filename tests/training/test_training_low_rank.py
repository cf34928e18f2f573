"""Low-rank training: the update's rank, where it begins, and what its checkpoints hold."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.data import Batches
from bessemer.data import load as load_data
from bessemer.errors import UsageError
from bessemer.training import (
    SGD,
    Bang,
    Checkpoint,
    LowRank,
    OnlyLayers,
    Plain,
    Recipe,
    fit,
    load,
    parameter_groups,
    starting_weights,
    train,
    trainer,
)  # fmt: skip
from bessemer.training.checkpoint import newest
from bessemer.training.schedules import Fixed
from bessemer.training.update import Update


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 10),
        )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().to(memory_format=torch.channels_last)


@pytest.fixture
def batch():
    return Batches(load_data("digits").train, 20, seed=3).next()


def trained(model, method, steps=20, lr=0.05):
    """The model after some steps of training with the method."""
    with ExitStack() as until_done:
        prepared = method.prepare(model, until_done)
        optimizer = SGD(parameter_groups(prepared, []), lr)
        batches = Batches(load_data("digits").train, 32, seed=1)
        update = Update(prepared, method, optimizer)
        trainer.loop(prepared, batches, update, optimizer, Fixed(), lr, steps, lambda done, loss: True)
    return model


def ranks(before, after):
    return [
        int(torch.linalg.matrix_rank((after[name] - tensor).flatten(1).double(), rtol=1e-5))
        for name, tensor in before.items()
        if tensor.dim() > 1
    ]


def test_training_begins_at_the_weights_there_are(model, batch):
    plain = copy.deepcopy(model)
    with ExitStack() as until_done:
        prepared = LowRank(2).prepare(model, until_done)
        assert torch.equal(prepared(batch.images), plain(batch.images))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_update_has_the_rank_it_may_have(model, rank):
    before = copy.deepcopy(model.state_dict())
    after = trained(model, LowRank(rank)).state_dict()
    assert ranks(before, after) == [rank, rank]


def test_a_rank_beyond_the_layer_is_the_layers_own(model):
    before = copy.deepcopy(model.state_dict())
    assert ranks(before, trained(model, LowRank(50)).state_dict()) == [6, 9]  # logits' gradients sum to 0


def test_the_gradient_of_the_factors_is_the_weights_gradient_through_them(model, batch):
    """One step of gradient descent by hand: U moves by G Vᵀ, and V, where U is zero, not at all."""
    plain = copy.deepcopy(model).train()
    cross_entropy(plain(batch.images), batch.labels).backward()
    start, gradient = plain[5].weight.detach().double(), plain[5].weight.grad.double()
    with ExitStack() as until_done:
        prepared = LowRank(4).prepare(model, until_done).train()
        v = prepared[5].parametrizations.weight[0].v.detach().double()
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
        LowRank(4).loss(prepared, batch).backward()
        optimizer.step()
    torch.testing.assert_close(v @ v.T, (96 / 4) ** 0.5 * torch.eye(4, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    expected = start - 0.1 * gradient @ v.T @ v
    torch.testing.assert_close(model[5].weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_a_first_step_is_about_as_long_as_without_factors(model, batch):
    lengths = []
    for rank in (1, 2, 4, 8):
        torch.manual_seed(1)
        large = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 200), nn.Linear(200, 10))
        start = large[3].weight.detach().clone()
        cross_entropy(large(batch.images), batch.labels).backward()
        full = large[3].weight.grad.norm()
        with ExitStack() as until_done:
            prepared = LowRank(rank).prepare(large, until_done)
            optimizer = torch.optim.SGD(prepared.parameters(), lr=1.0)
            optimizer.zero_grad()
            LowRank(rank).loss(prepared, batch).backward()
            optimizer.step()
        lengths.append(((large[3].weight.detach() - start).norm() / full).item())
    assert all(0.4 < length < 2.5 for length in lengths), lengths


@pytest.mark.parametrize("others", [True, False])
def test_biases_and_batch_norms_are_trained_or_not(model, others):
    before = copy.deepcopy(model.state_dict())
    after = trained(model, LowRank(2, others=others)).state_dict()
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "5.bias"):
        assert torch.equal(before[name], after[name]) is not others, name


def test_layers_that_do_not_match_keep_their_weights(model):
    before = copy.deepcopy(model.state_dict())
    after = trained(model, LowRank(2, match="5")).state_dict()
    assert ranks(before, after) == [0, 2]


def test_layers_that_the_method_inside_has_frozen_stay_frozen(model):
    before = copy.deepcopy(model.state_dict())
    after = trained(model, LowRank(2, inside=OnlyLayers("5"))).state_dict()
    assert ranks(before, after) == [0, 2]
    with pytest.raises(UsageError, match="matches none of the layers 5"):
        trained(model, LowRank(2, match="0", inside=OnlyLayers("5")))


def test_the_model_comes_back_plain(model):
    names, parameters = list(model.state_dict()), list(model.parameters())
    trained(model, LowRank(2, others=False))
    assert list(model.state_dict()) == names or set(model.state_dict()) == set(names)
    assert {id(parameter) for parameter in model.parameters()} == {id(parameter) for parameter in parameters}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert type(model[0]) is nn.Conv2d
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("method", [LowRank(2, inside=Bang()), Bang(inside=LowRank(2))], ids=["outside", "inside"])
def test_goes_together_with_balancing(model, method):
    before = copy.deepcopy(model.state_dict())
    unbalanced = trained(copy.deepcopy(model), LowRank(2)).state_dict()
    after = trained(model, method).state_dict()
    assert ranks(before, after) == [2, 2]
    assert not torch.allclose(after["5.weight"], unbalanced["5.weight"])
    assert type(model[0]) is nn.Conv2d


def test_an_optimizer_made_before_is_refused(model):
    optimizer = SGD(model.parameters(), 0.1)
    batches = Batches(load_data("digits").train, 20)
    with pytest.raises(UsageError, match="LowRank trains parameters of its own"):
        fit(model, batches, LowRank(2), optimizer, Fixed(), 0.1, 5, lambda done, loss: True)
    assert type(model[0]) is nn.Conv2d


def test_impossible_settings_are_refused(model):
    with pytest.raises(UsageError, match="rank should be a whole number from 1 upwards, found 0"):
        LowRank(0)
    with pytest.raises(UsageError, match=r"low-rank: 'conv\*' matches none of the layers 0, 5"):
        LowRank(2, match="conv*").prepare(model, ExitStack())


# --- as runs ----------------------------------------------------------------------------------------------------------

CHANGES = [
    "training.iterations=20",
    "training.checkpoint_every=5",
    "training.validate_every=10",
    "training.log_every=5",
]
METHOD = 'method={name="low-rank", rank=3, inside={name="bang"}}'


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    train(Recipe.named("digits", CHANGES), runs / "clean")
    recipe = Recipe.named("digits", [*CHANGES, f"init={runs / 'clean'}", METHOD])
    train(recipe, runs / "low-rank")
    return runs / "low-rank"


def test_checkpoints_hold_plain_weights_that_differ_by_the_rank(low_rank):
    weights = Checkpoint.read(newest(low_rank)).weights
    assert ranks(starting_weights(low_rank), weights) == [3, 3, 3, 3]
    opened = load(low_rank).state_dict()
    assert opened.keys() == weights.keys()
    assert all(torch.equal(opened[name], weights[name]) for name in weights)


def test_what_train_returns_is_what_load_opens(low_rank):
    again = train(load(low_rank).recipe, low_rank, resume=True)
    opened = load(low_rank)
    images = load_data("digits").test.at(slice(0, 50))[0]
    assert torch.equal(again(images), opened(images))


def test_a_stopped_run_goes_on_to_the_same_weights(low_rank, tmp_path):
    recipe = load(low_rank).recipe
    for stop_at in (3, 12):
        seen = []
        train(
            recipe, tmp_path / "x", resume=True, watch=lambda moment, seen=seen: seen.append(moment.iteration),
            stop=lambda seen=seen, at=stop_at: bool(seen) and seen[-1] >= at - 1,
        )  # fmt: skip
    train(recipe, tmp_path / "x", resume=True)
    one, other = (Checkpoint.read(newest(folder)) for folder in (low_rank, tmp_path / "x"))
    for part in ("weights", "installed"):
        found, expected = getattr(one, part), getattr(other, part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_recipe_survives_being_written(low_rank):
    method = load(low_rank).recipe.method
    assert method == LowRank(3, inside=Bang())
    assert LowRank(3).inside == Plain()
