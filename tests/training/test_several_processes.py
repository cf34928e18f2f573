"""Runs of two processes: as one, gone on with by one, refused by both."""

import os
import socket
from contextlib import closing
from datetime import timedelta
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed, multiprocessing

from bessemer.errors import UsageError
from bessemer.records import read_metrics
from bessemer.training import Recipe, load, train
from bessemer.training.checkpoint import Checkpoint, newest

CHANGES = ["training.iterations=6", "training.checkpoint_every=3", "training.log_every=2", "training.validate_every=3"]
CHANGES += ["model.dropout=0", "training.batch_size=32"]
ATTACKED = 'method={name="adversarial", attack={name="pgd", threat="Linf:0.1", steps=2}}'
SPREAD = {
    "balanced": ["training.sharded=true", "training.average=0.5"],
    "attacked": [ATTACKED, "training.sharded=true", 'validation.attack={name="fgsm", threat="Linf:0.1"}'],
}
# each process normalises its own images, and draws its own dropout; the attack reads the running statistics
APART = [ATTACKED, "training.synchronized_norm=false"]
APART += ["model={name='resnet', depth=8, width=4, dropout=0.3, classes=2}"]


def recipe(*changes):
    return Recipe.named("bang-digits", [*CHANGES, *changes])


def work(rank, port, found, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        train(recipe(), folder / "two")
        train(recipe(), folder / "half", stop=lambda: (folder / "half/checkpoints/step-00000003.safetensors").exists())
        for name, changes in SPREAD.items():
            at = folder / name / "checkpoints/step-00000003.safetensors"
            train(recipe(*changes), folder / name, stop=at.exists)
            train(recipe(*changes), folder / name, resume=True)
        apart = recipe(*APART, f"data={{name='folder', path='{folder / 'photos'}'}}")
        train(apart, folder / "apart")
        at = folder / "apart gone on with" / "checkpoints/step-00000003.safetensors"
        train(apart, at.parent.parent, stop=at.exists)
        train(apart, at.parent.parent, resume=True)
        try:
            train(recipe("training.batch_size=33"), folder / "uneven")
        except ValueError as problem:
            found[f"refusal {rank}"] = str(problem)
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    random = np.random.default_rng(0)
    for part, name, number in product(("train", "val"), ("cat", "dog"), range(40)):
        path = folder / "photos" / part / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        multiprocessing.spawn(work, (port, shared, folder), nprocs=2)
        yield dict(shared), folder


def weights(folder):
    return Checkpoint.read(newest(folder)).weights


def test_a_run_of_two_processes_is_the_run_of_one(found, tmp_path):
    train(recipe(), tmp_path)
    for name, tensor in weights(found[1] / "two").items():
        torch.testing.assert_close(tensor, weights(tmp_path)[name], rtol=1e-4, atol=1e-6)
    alone, together = ((folder / "metrics.jsonl").read_text() for folder in (tmp_path, found[1] / "two"))
    assert alone.count('"validation_accuracy"') == together.count('"validation_accuracy"') == 2
    assert load(found[1] / "two").iteration == 6


def test_a_run_goes_on_with_another_number_of_processes(found, tmp_path):
    assert load(found[1] / "half").iteration < 6
    train(recipe(), found[1] / "half", resume=True)
    train(recipe(), tmp_path)
    for name, tensor in weights(found[1] / "half").items():
        torch.testing.assert_close(tensor, weights(tmp_path)[name], rtol=1e-4, atol=1e-6)


def test_processes_that_normalise_apart_go_on_to_the_same_weights(found):
    whole, resumed = (weights(found[1] / name) for name in ("apart", "apart gone on with"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("name", SPREAD)
def test_a_network_spread_over_two_processes_is_trained_like_a_whole_one(found, tmp_path, name):
    train(recipe(*SPREAD[name]), tmp_path)
    one, other = (Checkpoint.read(newest(folder)) for folder in (tmp_path, found[1] / name))
    for kind in ("weights", "average"):
        for part, tensor in getattr(one, kind).items():
            torch.testing.assert_close(getattr(other, kind)[part], tensor, rtol=1e-4, atol=1e-6)
    for number, state in one.optimizer["state"].items():
        torch.testing.assert_close(
            other.optimizer["state"][number]["velocity"], state["velocity"], rtol=1e-3, atol=1e-6
        )
    alone, together = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, found[1] / name))
    for measure in ("validation_accuracy", "validation_robust_accuracy"):
        values = [[line[measure] for line in lines if measure in line] for lines in (alone, together)]
        assert values[0] == values[1]


def test_what_needs_whole_weights_cannot_be_spread():
    with pytest.raises(UsageError, match="LowRank puts other weights in place"):
        recipe("training.sharded=true", "method={name='low-rank', rank=2}")
    with pytest.raises(UsageError, match="the loss scale of float16 is not shared"):
        recipe("training.sharded=true", "training.precision=float16")


def test_a_batch_that_cannot_be_shared_out_is_refused(found):
    assert found[0]["refusal 0"] == found[0]["refusal 1"]
    assert "33 images cannot be shared out evenly among 2 processes" in found[0]["refusal 0"]
