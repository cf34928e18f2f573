"""How neurons move while a network trains: along known directions, under training methods, and as `purify` says."""

import copy
import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn

import bessemer as bs
from bessemer.purification.movement import movement, movement_of
from bessemer.records import read_metrics
from bessemer.records.movement import INITIAL, OUTWEIGHS, START, moments
from bessemer.training import Bang, LowRank, Recipe, train

SHORT = ["training.iterations=20", "training.validate_every=10", "training.checkpoint_every=20"]


def built():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, groups=2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def turned(rows, degrees):
    """Each row, turned by its own angle towards a random direction that stands upright on it, and made longer."""
    across = torch.randn(rows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along = rows.double() / rows.double().norm(dim=1, keepdim=True)
    across -= (across * along).sum(1, keepdim=True) * along
    across /= across.norm(dim=1, keepdim=True)
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))[:, None]
    return 3 * (angle.cos() * along + angle.sin() * across)


def test_neurons_that_turn_by_known_angles_are_seen_to():
    model = built()
    start = state(model)
    # the fifth has turned right round: theta is 1, and yet nothing of w is kept
    degrees = [5.0, 30.0, 44.0, 46.0, 180.0, 80.0]
    with torch.no_grad():
        model[0].weight.copy_(turned(model[0].weight.flatten(1), degrees).view_as(model[0].weight))
    found = movement(start, start)(model)
    expected = np.median(np.abs(np.cos(np.deg2rad(degrees))))
    assert found["theta_start/0"] == found["theta_initial/0"] == pytest.approx(expected, abs=2e-6)
    assert found["outweighs_start/0"] == pytest.approx(3 / 6, abs=1e-6)
    for still in ("3", "5"):
        assert found[f"theta_start/{still}"] == found[f"outweighs_start/{still}"] == 1


def test_the_two_starts_are_told_apart():
    model = built()
    start, initial = state(model), state(model)
    initial["5.weight"] = turned(initial["5.weight"], [60.0] * 5)
    found = movement(start, initial)(model)
    assert found["theta_start/5"] == 1
    assert found["theta_initial/5"] == pytest.approx(0.5, abs=2e-6)
    assert set(movement(None, initial)(model)) == {f"theta_initial/{layer}" for layer in "035"}
    assert movement(None, None)(model) == {}


def test_a_transposed_convolution_is_read_one_row_a_neuron():
    model = built()
    start = state(model)
    with torch.no_grad():
        model[3].weight[:, 0] *= -2  # all inputs of a group to its first output
        model[3].weight[0] *= 1.5  # within the neurons of the first group
    clean, now = (
        weight.view(2, 3, 2, 9).transpose(1, 2).reshape(4, 27) for weight in (start["3.weight"], model[3].weight)
    )
    cosines = nn.functional.cosine_similarity(clean.double(), now.double()).detach()
    found = movement(start, None)(model)
    assert found["theta_start/3"] == pytest.approx(np.median(cosines.abs()), abs=2e-6)
    assert found["outweighs_start/3"] == 0.5


def test_neurons_without_a_direction_are_counted_nowhere():
    model = built()
    start = state(model)
    with torch.no_grad():
        model[5].weight[:2] = 0
        model[5].weight[2] *= -1
        model[0].weight.zero_()
    found = movement(start, start)(model)
    assert found["theta_start/5"] == 1
    assert found["outweighs_start/5"] == pytest.approx(2 / 3, abs=1e-6)
    assert not any(key.endswith("/0") for key in found)


@pytest.mark.parametrize("method", [LowRank(1), Bang()])
def test_what_a_method_has_installed_is_seen_through_and_left_alone(method):
    model = built().train()
    start = state(model)
    note = movement(start, None)
    bare = copy.deepcopy(model)
    with ExitStack() as until_done:
        prepared = method.prepare(model, until_done)
        # an update of rank 1 lies in U V; a balanced layer keeps its weight where it was
        where = prepared[5].parametrizations.weight[0].u if isinstance(method, LowRank) else prepared[5].weight
        with torch.no_grad():
            where += torch.linspace(-1, 1, where.numel()).view_as(where)
            bare[5].weight.copy_(prepared[5].weight)
        before, random = state(prepared), torch.get_rng_state()
        found = note(prepared)
        assert prepared.training
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.state_dict().items())
    assert found == note(bare)
    assert found["theta_start/5"] < 1
    assert found["theta_start/0"] == 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A clean run, and a BANG run that starts from it, each with what was noted."""
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe, more in (("clean", "digits", []), ("robust", "bang-digits", [f"init={folder / 'clean'}"])):
        chosen = Recipe.named(recipe, [*SHORT, *more])
        train(chosen, folder / name, note=movement_of(folder / name, chosen))
    return folder


def test_a_chained_run_ends_where_purify_says(runs):
    record = bs.purify(runs / "clean", runs / "robust")
    noted = read_metrics(runs / "robust" / "metrics.jsonl")
    start, initial, outweighs = (moments(noted, measure) for measure in (START, INITIAL, OUTWEIGHS))
    for found in (start, initial, outweighs):
        assert list(found) == [0, 10, 20]
        assert list(found[20]) == [layer.name for layer in record.layers]
    for layer in record.layers:
        assert start[0][layer.name] == outweighs[0][layer.name] == 1
        for column, found, at in (
            ("clean_robust", start, 20),
            ("initial_robust", initial, 20),
            ("initial_clean", initial, 0),
        ):
            assert found[at][layer.name] == pytest.approx(np.nanmedian(layer[column]), abs=2e-6)
        assert outweighs[20][layer.name] == pytest.approx(layer.outweighs().value, abs=1e-6)


def test_a_run_from_scratch_knows_its_random_start_alone(runs):
    noted = read_metrics(runs / "clean" / "metrics.jsonl")
    assert moments(noted, START) == moments(noted, OUTWEIGHS) == {}
    found = moments(noted, INITIAL)
    assert set(found[0].values()) == {1.0}
    record = bs.purify(runs / "clean", runs / "robust")
    medians = [np.nanmedian(layer["initial_clean"]) for layer in record.layers]
    np.testing.assert_allclose(list(found[20].values()), medians, atol=2e-6)


def test_a_run_that_kept_no_initial_weights_is_trained_all_the_same(runs, tmp_path):
    chosen = Recipe.named("digits", [*SHORT, f"init={runs / 'clean'}"])
    train(chosen, tmp_path / "x", stop=lambda: True)
    for kept in ("initial", "random"):
        (tmp_path / "x" / "checkpoints" / f"{kept}.safetensors").unlink()
    train(chosen, tmp_path / "x", resume=True, note=movement_of(tmp_path / "x", chosen))
    noted = read_metrics(tmp_path / "x" / "metrics.jsonl")
    assert max(line["iteration"] for line in noted) == 20
    assert moments(noted, START) == moments(noted, INITIAL) == {}


def test_weights_that_are_no_numbers_are_not_noted():
    model = built()
    start = state(model)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
        model[5].weight[0] = math.inf
    found = movement(start, start)(model)
    assert "theta_start/0" not in found
    assert found["theta_start/5"] == 1
