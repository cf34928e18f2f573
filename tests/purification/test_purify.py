"""Two networks compared neuron by neuron: planted mixtures, every kind of layer, and what is refused."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

import bessemer as bs
from bessemer.errors import UsageError
from bessemer.purification.neurons import weights

TINY = ["training.iterations=3", "training.validate_every=3", "training.checkpoint_every=3"]


def built(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.Flatten(), nn.Linear(6, 4)
    )


def moved(model, size=0.1, seed=9):
    """A copy whose weights have gone a little way at random."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return other


def layer(record, name):
    return next(one for one in record.layers if one.name == name)


def test_a_planted_mixture_comes_back_layer_by_layer():
    robust = built()
    clean = copy.deepcopy(robust)
    planted = {}
    for place, beta in ((0, 2.0), (3, 0.5), (5, 1.5)):
        pure = robust[place].weight.detach().flatten(1)
        v = torch.randn(pure.shape, generator=torch.Generator().manual_seed(place))
        v -= (v * pure).sum(1, keepdim=True) / pure.square().sum(1, keepdim=True) * pure
        planted[place] = (beta, v.norm(dim=1) / (beta * pure.norm(dim=1)))
        with torch.no_grad():
            clean[place].weight.copy_((beta * pure + v).view_as(clean[place].weight))
    record = bs.purify(clean, robust)
    assert [one.name for one in record.layers] == ["0", "3", "5"]
    for place, (beta, ratio) in planted.items():
        found = layer(record, str(place))
        np.testing.assert_allclose(found["beta"], beta, rtol=1e-4)
        np.testing.assert_allclose(found.ratio, ratio, rtol=1e-4)
        assert found.outweighs().count == int((ratio < 1).sum())


def test_a_low_rank_change_is_explained_by_its_rank():
    clean = nn.Linear(40, 30)
    robust = copy.deepcopy(clean)
    with torch.no_grad():
        robust.weight += torch.randn(30, 2) @ torch.randn(2, 40)
    record = bs.purify(clean, robust)
    assert record.layers[0].explained_at(2) == pytest.approx(1)
    assert record.layers[0].explained_at(1) < 1
    assert record.layers[0].by_chance_at(2) < 0.3


def test_the_null_is_measured_against_an_independent_network():
    clean, robust, other = built(), moved(built()), built(seed=1)
    record = bs.purify(clean, robust, initial=built(seed=2), independent=other)
    w, u = clean[0].weight.detach().flatten(1), other[0].weight.detach().flatten(1)
    cosines = torch.nn.functional.cosine_similarity(w[:, None], u[None], dim=2).abs()
    np.testing.assert_allclose(layer(record, "0")["independent"], cosines.diag(), rtol=1e-4)
    np.testing.assert_allclose(layer(record, "0")["nearest_independent"], cosines.amax(1), rtol=1e-4)


def test_scaling_each_filter_as_normalisation_allows_changes_no_angle():
    clean, robust = built(), moved(built())
    scaled = copy.deepcopy(robust)
    with torch.no_grad():
        scaled[0].weight *= torch.logspace(-3, 3, 6)[:, None, None, None]
    one, other = bs.purify(clean, robust), bs.purify(clean, scaled)
    for column in ("clean_robust", "removed"):
        np.testing.assert_allclose(layer(one, "0")[column], layer(other, "0")[column], rtol=1e-5)
    np.testing.assert_allclose(layer(one, "0").rescaled, layer(other, "0").rescaled, rtol=1e-5)


def test_modules_and_state_dicts_say_the_same():
    clean, robust, initial = built(), moved(built()), built(seed=3)
    modules = bs.purify(clean, robust, initial)
    states = bs.purify(clean.state_dict(), robust.state_dict(), initial.state_dict())
    mixed = bs.purify(clean, {f"module.{name}": tensor for name, tensor in robust.state_dict().items()}, initial)
    for record in (states, mixed):
        assert [one.to_json() for one in record.layers] == [one.to_json() for one in modules.layers]


# which weights are neurons


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_turned(groups):
    """Its neurons are its output channels: setting one to zero silences that channel alone."""
    module = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    rows = weights(module)["weight"].rows
    assert rows.shape == (6, 4 // groups * 9)
    for channel in range(6):
        only = copy.deepcopy(module)
        inside, each = channel % (6 // groups), 4 // groups
        block = slice(channel // (6 // groups) * each, (channel // (6 // groups) + 1) * each)
        torch.testing.assert_close(rows[channel], module.weight[block, inside].double().flatten())
        with torch.no_grad():
            only.weight[block, inside] = 0
        change = (module(torch.ones(1, 4, 5, 5)) - only(torch.ones(1, 4, 5, 5))).abs().amax((0, 2, 3))
        assert (change > 0).nonzero().flatten().tolist() == [channel]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(3, 5, 4), (5, 12)),
        (nn.Conv3d(2, 3, 2), (3, 16)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 9)),
        (nn.Linear(7, 2), (2, 7)),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 2)), (5, 12)),
    ],
)
def test_every_kind_of_filter_is_one_row_a_neuron(module, shape):
    assert tuple(weights(module)["weight"].rows.shape) == shape


def test_attention_is_measured_and_embeddings_are_named_as_left_out():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 8)
            self.attention = nn.MultiheadAttention(8, 2)

    model = Reader()
    record = bs.purify(model, moved(model))
    assert [one.name for one in record.layers] == ["attention.in_proj_weight", "attention.out_proj"]
    assert "not measured, since they are no filters: words.weight" in record.remarks


def test_a_module_used_twice_and_a_tied_weight_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
            self.second.weight = self.first.weight
            self.again = self.first

    model = Tied()
    assert [one.name for one in bs.purify(model, moved(model)).layers] == ["first = second"]
    parted = moved(model)
    parted.second.weight = nn.Parameter(parted.second.weight + 1)
    assert [one.name for one in bs.purify(model, parted).layers] == ["first", "second"]


def test_the_dead_are_named_and_counted_nowhere():
    clean, robust = built(), moved(built())
    with torch.no_grad():
        clean[0].weight[1] = 0
        robust[0].weight[4] = 0
    record = bs.purify(clean, robust)
    found = layer(record, "0")
    assert found.dead == [1, 4]
    assert found.outweighs().total == 4
    assert np.isnan(found["clean_robust"][[1, 4]]).all()
    assert any(remark.endswith("left out: 0 1, 4") for remark in record.remarks)
    assert len(record.column("beta")) == 4 + 6 + 4


def test_a_layer_that_was_not_trained_has_no_change_to_explain():
    clean = built()
    robust = copy.deepcopy(clean)
    with torch.no_grad():
        robust[5].weight += 0.1 * torch.randn(4, 6)
    record = bs.purify(clean, robust)
    assert layer(record, "0").change == 0
    assert np.isnan(layer(record, "0").explained_at(1))
    np.testing.assert_allclose(layer(record, "0")["clean_robust"], 1)
    assert record.explained_at(1) == pytest.approx(layer(record, "5").explained_at(1))


def test_the_networks_come_back_as_they_were():
    clean, robust = built().train(), moved(built())
    before = copy.deepcopy(clean.state_dict())
    bs.purify(clean, robust)
    assert clean.training
    assert all(torch.equal(before[name], tensor) for name, tensor in clean.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in clean.parameters())


# what is refused


def other_width():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=3), nn.Flatten(), nn.Linear(12, 4)
    )


@pytest.mark.parametrize(
    ("robust", "says"),
    [
        (other_width, "the weight of 3 has shape (6, 2, 3, 3) in clean and (12, 2, 3, 3) in robust"),
        (lambda: built()[:4], "only clean has a layer 5"),
        (lambda: built().append(nn.Linear(4, 4)), "only robust has a layer 6"),
        (lambda: nn.ReLU(), "only clean has a layer 0"),
    ],
)
def test_different_architectures_are_refused_with_the_first_difference(robust, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        bs.purify(built(), robust())


def test_what_cannot_be_compared_is_refused():
    clean, robust = built(), moved(built())
    with pytest.raises(UsageError, match="same weights, so there is nothing to compare"):
        bs.purify(clean, copy.deepcopy(clean))
    with pytest.raises(UsageError, match="has no layers with filters"):
        bs.purify(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match="robust: a int is no network"):
        bs.purify(clean, 3)
    with pytest.raises(UsageError, match="tensors by name, but 3.weight is a list"):
        bs.purify(clean, {**robust.state_dict(), "3.weight": [1.0]})
    with pytest.raises(UsageError, match="independent network is one of the two"):
        bs.purify(clean, robust, independent=robust)
    with torch.no_grad():
        robust[3].weight[0] = torch.nan
    with pytest.raises(UsageError, match="robust has weights in 3 that are not finite"):
        bs.purify(clean, robust)


# how the two are related


def test_the_start_of_robust_training_tells_how_the_two_are_related():
    clean, robust = built(), moved(built())
    assert bs.purify(clean, robust).relation == "unknown"
    assert bs.purify(clean, robust, robust_start=clean).relation == "continued"
    record = bs.purify(clean, robust, robust_start=built(seed=4))
    assert (record.relation, record.remarks[0][:9]) == ("unrelated", "unrelated")
    strangers = bs.purify(clean, built(seed=5))
    assert strangers.relation == "unrelated"
    assert strangers.remarks[0].startswith("unrelated, by the weights: only in")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in {
        "clean": [],
        "other": ["seed=1"],
        "twin": ["optimizer.lr=0.001"],
        "robust": [f"init={folder / 'clean'}", "seed=2"],
    }.items():
        bs.train(bs.Recipe.named("digits", [*TINY, *changes]), folder / name)
    return folder


def test_runs_know_how_they_are_related(runs):
    record = bs.purify(runs / "clean", runs / "robust", independent=runs / "other")
    assert (record.clean, record.robust, record.independent) == ("clean", "robust", "other")
    assert (record.relation, record.remarks) == ("continued", [])
    assert bs.purify(runs / "clean", runs / "twin").relation == "same start"
    strangers = bs.purify(bs.load(runs / "clean"), str(runs / "other"))
    assert strangers.remarks[0] == (
        "unrelated: the robust run did not start from the clean one (their seeds are 0 and 1)"
    )
    dependent = bs.purify(runs / "clean", runs / "robust", independent=runs / "twin")
    assert "so it is not independent of it" in dependent.remarks[0]


def test_theta_to_the_start_is_that_of_the_weights_before_all_training(runs):
    first = bs.load(runs / "clean")
    start = torch.nn.functional.cosine_similarity
    initial = bs.training.initial_weights(runs / "robust")["conv1.weight"]
    expected = start(initial.flatten(1), first.conv1.weight.detach().flatten(1)).abs()
    record = bs.purify(runs / "clean", runs / "robust")
    np.testing.assert_allclose(layer(record, "conv1")["initial_clean"], expected, rtol=1e-5)


def test_a_run_that_kept_no_initial_weights_is_compared_without_them(runs, tmp_path):
    from shutil import copytree

    copytree(runs / "clean", tmp_path / "bare")
    (tmp_path / "bare" / "checkpoints" / "initial.safetensors").unlink()
    record = bs.purify(tmp_path / "bare", runs / "robust")
    assert record.initial == ""
    assert len(record.column("initial_clean")) == 0
    assert "the weights before training are not known (bare kept none)" in record.remarks[0]


def test_two_runs_of_one_name_are_told_apart(runs, tmp_path):
    from shutil import copytree

    copytree(runs / "robust", tmp_path / "clean")
    record = bs.purify(runs / "clean", tmp_path / "clean")
    assert record.clean != record.robust
