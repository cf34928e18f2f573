"""Runs that start from other runs: which weights they begin with, and what is kept of them."""

import shutil

import pytest
import torch

from bessemer.errors import FileError, UsageError
from bessemer.records import read_record
from bessemer.training import Checkpoint, Recipe, initial_weights, load, starting_weights, train
from bessemer.training.checkpoint import newest

SHORT = ["training.iterations=20", "training.checkpoint_every=5", "training.validate_every=20", "training.log_every=5"]


def recipe(*changes, name="digits"):
    return Recipe.named(name, [*SHORT, *changes])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def final(folder):
    return Checkpoint.read(newest(folder)).weights


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "clean"
    train(recipe(), folder)
    return folder


@pytest.fixture(scope="module")
def robust(clean):
    folder = clean.parent / "robust"
    train(recipe(f"init={clean}", "seed=3", name="bang-digits"), folder)
    return folder


def test_a_run_starts_from_the_newest_weights_of_another(clean, robust):
    assert same(starting_weights(robust), final(clean))
    assert not same(final(robust), final(clean))


def test_random_weights_start_themselves(clean):
    assert same(starting_weights(clean), initial_weights(clean))
    assert not same(starting_weights(clean), final(clean))


def test_a_chain_of_runs_leads_back_to_the_random_start(clean, robust, tmp_path):
    train(recipe(f"init={robust}"), tmp_path / "third")
    for folder in (robust, tmp_path / "third"):
        assert same(initial_weights(folder), initial_weights(clean))
    assert same(starting_weights(tmp_path / "third"), final(robust))


def test_what_a_run_started_from_is_recorded(clean, robust):
    assert load(robust).recipe.init == str(clean)
    assert read_record(robust / "provenance.json")["init"] == {"run": str(clean.resolve()), "iteration": 20}
    assert "init" not in read_record(clean / "provenance.json")


def test_a_stopped_run_goes_on_to_the_same_weights_though_the_other_is_gone(clean, robust, tmp_path):
    other, folder = tmp_path / "clean", tmp_path / "robust"
    shutil.copytree(clean, other)
    changed = recipe(f"init={other}", "seed=3", name="bang-digits")
    seen = []
    train(changed, folder, watch=seen.append, stop=lambda: len(seen) >= 12)
    shutil.rmtree(other)
    train(changed, folder, resume=True)
    assert same(final(folder), final(robust))
    assert same(initial_weights(folder), initial_weights(clean))
    assert read_record(folder / "provenance.json")["init"] == {"run": str(other.resolve()), "iteration": 20}


def test_one_folder_has_several_names(clean, tmp_path, monkeypatch):
    train(recipe(f"init={clean}"), tmp_path / "x", stop=lambda: True)
    monkeypatch.chdir(clean.parent)
    train(recipe("init=clean"), tmp_path / "x", resume=True)
    with pytest.raises(UsageError, match=r"init was '.*clean' and is now '.*robust'"):
        train(recipe("init=robust"), tmp_path / "x", resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.name=lenet", "trained a digits-net, but model.name is lenet"),
        ("model.classes=11", r"model\.classes was 11 and is now 10"),
    ],
)
def test_a_run_of_another_model_is_refused_in_words(change, said, clean, tmp_path):
    from bessemer import models
    from bessemer.training import chain

    other = recipe(change, f"init={clean}")
    with pytest.raises(UsageError, match=said):
        chain.begin(models.build(other.model[0], **other.model[1]), other)


def test_a_run_with_other_norms_is_refused_in_words(clean):
    from bessemer import models
    from bessemer.training import chain

    other = recipe("norm.name=group", "norm.groups=2", f"init={clean}")
    with pytest.raises(UsageError, match=r"with BatchNorm\(\), but this one has GroupNorm\(groups=2\)"):
        chain.begin(models.build(other.model[0], **other.model[1]), other)


def test_the_first_weight_that_differs_is_named(clean, tmp_path):
    from bessemer import models
    from bessemer.training import chain

    other = recipe("model.classes=11", f"init={clean}")
    with pytest.raises(UsageError, match=r"ip2\.weight should be \(11, 128\) and is \(10, 128\)"):
        chain.begin(models.build("digits-net", classes=11), other)


def test_settings_that_change_no_weight_may_differ(clean, tmp_path):
    train(recipe(f"init={clean}", "model.dropout=0.0"), tmp_path / "x")
    assert same(starting_weights(tmp_path / "x"), final(clean))


def test_what_is_no_run_is_refused_and_leaves_nothing_in_the_way(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no run"):
        train(recipe(f"init={tmp_path / 'nowhere'}"), tmp_path / "x")
    train(recipe(), tmp_path / "x")
    with pytest.raises(UsageError, match="is no run"):
        starting_weights(tmp_path)


def test_a_run_that_kept_no_initial_weights_says_so(clean, tmp_path):
    other = tmp_path / "clean"
    shutil.copytree(clean, other)
    (other / "checkpoints" / "initial.safetensors").unlink()
    for ask in (initial_weights, starting_weights):
        with pytest.raises(FileError, match=r"kept no initial weights: .*initial\.safetensors is missing"):
            ask(other)
    train(recipe(f"init={other}"), tmp_path / "x")  # its newest weights are there all the same
    assert same(starting_weights(tmp_path / "x"), final(clean))
    with pytest.raises(FileError, match=r"kept no initial weights: .*random\.safetensors is missing"):
        initial_weights(tmp_path / "x")
