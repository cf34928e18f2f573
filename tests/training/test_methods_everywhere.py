"""What every training method promises: parts of a batch add up, processes agree, recipes name it, it nests."""

import copy
import os
import socket
import tomllib
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn

from bessemer import layers
from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.threat import Linf
from bessemer.training import (
    METHODS,
    SGD,
    Adversarial,
    AdvProp,
    Bang,
    ConsistentNorm,
    FastFGSM,
    Free,
    LogitPairing,
    LowRank,
    Mart,
    Mixture,
    OnlyLayers,
    Plain,
    Recipe,
    Trades,
    WeightPerturbation,
    train,
)
from bessemer.training.checkpoint import Checkpoint, newest
from bessemer.training.update import Update

ATTACK = PGD(Linf(0.1), steps=2)
BRANCHES = ("clean", "adversarial", "strong")

# each of them by the name that recipes give it
EVERY = {
    "plain": Plain(label_smoothing=0.1),
    "adversarial": Adversarial(ATTACK, clean_share=0.5),
    "fast-fgsm": FastFGSM(Linf(0.1), check_every=1, when_overfitting="pgd"),
    "free": Free(Linf(0.1), replays=3),
    "trades": Trades(Linf(0.1), steps=2),
    "mart": Mart(ATTACK),
    "logit-pairing": LogitPairing(ATTACK),
    "logit-pairing clean": LogitPairing(form="clean"),
    "logit-pairing squeezing": LogitPairing(form="squeezing"),
    "mixture": Mixture(ATTACK),
    "logit-pairing mixture": LogitPairing(ATTACK),
    "adv-prop": AdvProp(ATTACK, label_smoothing=0.1),
    "adv-prop several": AdvProp(ATTACK, auxiliary=BRANCHES[1:], strengths=(0.5, 1.5)),
    "adv-prop per image": AdvProp(ATTACK, auxiliary=BRANCHES[1:], strengths=(0.5, 1.5), per_image=True),
    "consistent-norm": ConsistentNorm(0, Trades(Linf(0.1), steps=2)),
    "low-rank": LowRank(1, inside=Adversarial(ATTACK)),
    "only-layers": OnlyLayers("4", Adversarial(ATTACK)),
    "weight-perturbation": WeightPerturbation(gamma=0.05, inside=Trades(Linf(0.1), steps=2)),
    "bang": Bang(epsilon=0.5, misclassified=0.5, inside=Mart(ATTACK)),
}
NESTED = {
    "bang awp trades": Bang(misclassified=0.5, inside=WeightPerturbation(inside=Trades(Linf(0.1), steps=2))),
    "awp bang fast": WeightPerturbation(inside=Bang(misclassified=0.5, inside=FastFGSM(Linf(0.1), check_every=1))),
    "bang free": Bang(misclassified=0.5, inside=Free(Linf(0.1), replays=2)),
    "consistent awp mixture": ConsistentNorm(0, WeightPerturbation(inside=Mixture(ATTACK))),
    "awp adv-prop several": WeightPerturbation(inside=EVERY["adv-prop several"]),
    "bang awp pairing mixture": Bang(misclassified=0.5, inside=WeightPerturbation(inside=LogitPairing(ATTACK))),
}


def network(name):
    """In training mode; without batch norm, so that nothing mixes samples, or with one that uses running statistics."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if any(word in name for word in ("mixture", "adv-prop", "consistent")) else nn.Identity()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)).double()
    for tensor in model.buffers():
        if tensor.is_floating_point():
            tensor += 0.3 * torch.rand_like(tensor)
    if "mixture" in name or "adv-prop" in name:
        layers.mixture_norm(model, BRANCHES if "several" in name or "per image" in name else BRANCHES[:2])
    if "consistent" not in name:
        model[1].eval()
    return model


def batch(iteration=0):
    generator = torch.Generator().manual_seed(1 + iteration)
    images = torch.rand(8, 1, 6, 6, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(8) % 5, torch.arange(8) + 8 * iteration, seed=iteration, iteration=iteration)


def seen(method, model, parts):
    """The mean loss and the gradients of each update, over some parts of a batch."""
    found = []
    with ExitStack() as until_done:
        prepared = method.prepare(model, until_done)
        every = [method.losses(prepared, batch().part(number, parts)) for number in range(parts)]
        for _ in range(method.updates):
            prepared.zero_grad()
            losses = []
            for each in every:
                loss = next(each)
                (loss / parts).backward()
                losses.append(loss.detach())
            found.append([torch.stack(losses).mean(), *_gradients(prepared)])
    return found


def _gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("weight-perturbation", "bang")])
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(name):
    whole, halves = (seen(EVERY[name], network(name), parts) for parts in (1, 2))
    assert len(whole) == EVERY[name].updates
    for one, other in zip(whole, halves, strict=True):
        for expected, found in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_every_method_is_tried_here():
    assert {name.split()[0] for name in EVERY} == METHODS.keys()
    assert all(type(method) is METHODS[name.split()[0]] for name, method in EVERY.items())


# --- processes --------------------------------------------------------------------------------------------------------


def trained(name, method, part=lambda batch: batch):
    """Three batches' updates."""
    model = network(name)
    with ExitStack() as until_done:
        prepared = method.prepare(model, until_done)
        update = Update(prepared, method, SGD(prepared.parameters(), lr=0.1))
        losses = [update(part(batch(iteration))).item() for iteration in range(3)]
        return losses, {key: tensor.clone() for key, tensor in prepared.state_dict().items()}


def work(rank, port, found):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        for name, method in {**EVERY, **NESTED}.items():
            found[name, rank] = trained(name, method, lambda batch: batch.part(rank, 2))
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch is built without torch.distributed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_train_like_one():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.Manager() as manager:
        found = manager.dict()
        multiprocessing.spawn(work, (port, found), nprocs=2)
        everything = dict(found)
    for name, method in {**EVERY, **NESTED}.items():
        losses, expected = trained(name, method)
        one, other = (everything[name, rank] for rank in (0, 1))
        assert [sum(each) / 2 for each in zip(one[0], other[0], strict=True)] == pytest.approx(losses, rel=1e-9), name
        for key, tensor in expected.items():
            for weights in (one[1], other[1]):
                torch.testing.assert_close(weights[key], tensor, rtol=1e-8, atol=1e-10, msg=f"{name}: {key}")


# --- nesting, precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*EVERY, *NESTED])
def test_every_method_trains_in_every_precision(name, precision):
    method = {**EVERY, **NESTED}[name]
    model = network(name).float().train()
    with ExitStack() as until_done:
        prepared = method.prepare(model, until_done)
        before = copy.deepcopy(prepared.state_dict())
        update = Update(prepared, method, SGD(prepared.parameters(), lr=0.1), precision)
        for iteration in range(2):
            given = batch(iteration)
            loss = update(replace(given, images=given.images.float()))
            assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in _gradients(prepared))
        trained = {name for name, parameter in prepared.named_parameters() if parameter.requires_grad}
        after = prepared.state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in trained)
        assert all(tensor.isfinite().all() for tensor in after.values())
        assert all(module.training for module in prepared.modules())


# --- recipes ----------------------------------------------------------------------------------------------------------

PGD_TABLE = {"name": "pgd", "threat": "Linf:8/255", "steps": 5}
TABLES = {
    "fast-fgsm": ({"threat": "Linf:8/255", "step_size": "10/255", "when_overfitting": "pgd"}, FastFGSM),
    "free": ({"threat": "Linf:8/255", "replays": 8}, Free),
    "trades": ({"threat": "Linf:8/255", "step_size": "2/255", "beta": 5}, Trades),
    "mart": ({"attack": PGD_TABLE, "attack_mode": "training", "warmup": 20}, Mart),
    "logit-pairing": ({"attack": PGD_TABLE, "weight": 0.25, "label_smoothing": 0.1}, LogitPairing),
    "mixture": ({"attack": PGD_TABLE, "inside": {"name": "plain", "label_smoothing": 0.1}}, Mixture),
    "adv-prop": (
        {"attack": PGD_TABLE, "auxiliary": ["weak", "strong"], "strengths": [0.5, 1], "per_image": True},
        AdvProp,
    ),
    "weight-perturbation": (
        {"gamma": 0.01, "inside": {"name": "trades", "threat": "Linf:8/255"}},
        WeightPerturbation,
    ),
    "consistent-norm": ({"start": 100, "inside": {"name": "adversarial", "attack": PGD_TABLE}}, ConsistentNorm),
}


def recipe(method):
    return Recipe.from_tables(
        {
            "data": {"name": "digits"},
            "model": {"name": "digits-net"},
            "optimizer": {"lr": 0.1},
            "training": {"batch_size": 10, "iterations": 20},
            "method": method,
        },
        "tried",
    )


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_names_it_and_survives_being_written(name):
    settings, kind = TABLES[name]
    found = recipe({"name": name, **settings})
    assert type(found.method) is kind
    again = Recipe.from_tables(tomllib.loads(found.to_toml()), "tried")
    assert again == found
    # every setting is written out, but those that are None
    written = found.tables["method"]
    for key, value in vars(found.method).items():
        assert (key in written) == (value is not None), key


@pytest.mark.parametrize("form", ["clean", "squeezing"])
def test_a_recipe_of_clean_pairs_has_no_attack(form):
    found = recipe({"name": "logit-pairing", "form": form})
    assert found.method == LogitPairing(form=form)
    assert "attack" not in found.tables["method"]


def test_a_recipe_is_told_what_is_wrong_with_its_method():
    with pytest.raises(UsageError, match="method: logit pairing of the form 'adversarial' needs an attack"):
        recipe({"name": "logit-pairing"})
    with pytest.raises(UsageError, match=r"method\.inside: .*strengths needs a number"):
        recipe({"name": "bang", "inside": {"name": "adv-prop", "attack": PGD_TABLE, "auxiliary": ["a", "b"]}})
    with pytest.raises(UsageError, match="did you mean 'fast-fgsm'"):
        recipe({"name": "fast_fgsm"})


# --- whole runs -------------------------------------------------------------------------------------------------------

SHORT = {"batch_size": 20, "iterations": 4, "checkpoint_every": 2, "validate_every": 4, "log_every": 1}
RUNS = {
    "fast-fgsm": {"threat": "Linf:0.2", "check_every": 1, "when_overfitting": "pgd"},
    "free": {"threat": "Linf:0.2", "replays": 2},
    "weight-perturbation": {"inside": {"name": "trades", "threat": "Linf:0.2", "steps": 2}},
    "logit-pairing": {"form": "clean"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    tables = {
        "data": {"name": "digits"},
        "model": {"name": "digits-net"},
        "optimizer": {"lr": 0.05},
        "training": SHORT,
        "method": {"name": name, **RUNS[name]},
    }
    whole = Recipe.from_tables(tables, "tried")
    train(whole, tmp_path / "whole")
    train(whole, tmp_path / "two", stop=lambda: (tmp_path / "two/checkpoints/step-00000002.safetensors").exists())
    train(whole, tmp_path / "two", resume=True)
    one, other = (Checkpoint.read(newest(tmp_path / folder)) for folder in ("whole", "two"))
    assert one.iteration == other.iteration == 4
    for found, expected in ((other.weights, one.weights), (other.installed, one.installed)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    assert bool(one.installed) == (name == "fast-fgsm")
