"""Two processes train like one: every method's updates, and whole runs."""

import os
import socket
from contextlib import ExitStack, closing
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn

from bessemer import layers
from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.threat import Linf
from bessemer.training import SGD, Adversarial, Bang, Plain, Recipe, load, train
from bessemer.training.checkpoint import Checkpoint, newest
from bessemer.training.update import Update

ATTACK = PGD(Linf(0.1), steps=2)
METHODS = {
    "plain": Plain(label_smoothing=0.1),
    "adversarial": Adversarial(ATTACK, clean_share=0.5),
    "adversarial, training mode": Adversarial(ATTACK, attack_mode="training"),
    "balanced": Bang(1.0, 0.8, misclassified=0.5, inside=Adversarial(ATTACK)),
}
CHANGES = ["training.iterations=6", "training.checkpoint_every=3", "training.log_every=2", "training.validate_every=3"]
CHANGES += ["model.dropout=0", "training.batch_size=32"]


def network():
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
    return nn.Sequential(*parts).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    for step in range(2):
        images = torch.rand(16, 1, 8, 8, generator=generator, dtype=torch.float64)
        yield Batch(images, torch.arange(16) % 3, torch.arange(16), seed=step, iteration=step)


def trained(name, place=(0, 1), accumulation=1):
    """What two updates make of the weights and running statistics."""
    method, model = METHODS[name], network()
    with ExitStack() as until_done:
        if place[1] > 1:
            model = layers.synchronized(model)
        prepared = method.prepare(model, until_done).train()
        optimizer = SGD(prepared.parameters(), lr=0.1)
        update = Update(prepared, method, optimizer, accumulation=accumulation)
        for batch in batches():
            update(batch.part(*place))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def recipe(*changes):
    return Recipe.named("bang-digits", [*CHANGES, *changes])


def work(rank, port, found, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        for name in METHODS:
            found[f"{name} {rank}"] = trained(name, (rank, 2))
        train(recipe(), folder / "two")
        train(recipe(), folder / "half", stop=lambda: (folder / "half/checkpoints/step-00000003.safetensors").exists())
        try:
            train(recipe("training.batch_size=33"), folder / "uneven")
        except ValueError as problem:
            found[f"refusal {rank}"] = str(problem)
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        multiprocessing.spawn(work, (port, shared, folder), nprocs=2)
        yield dict(shared), folder


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_make_the_updates_of_one(found, name):
    expected = trained(name)
    start = network().state_dict()
    assert not torch.allclose(expected["0.weight"], start["0.weight"], rtol=1e-4), "nothing was trained"
    for rank in (0, 1):
        for part, tensor in found[0][f"{name} {rank}"].items():
            torch.testing.assert_close(tensor, expected[part], rtol=1e-9, atol=1e-11, msg=f"{name}: {part}")


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


def test_a_batch_that_cannot_be_shared_out_is_refused(found):
    assert found[0]["refusal 0"] == found[0]["refusal 1"]
    assert "33 images cannot be shared out evenly among 2 processes" in found[0]["refusal 0"]
