"""Two processes balance like one: the maximum is taken over the global batch."""

import copy
import os
import socket
from contextlib import closing
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bessemer.errors import BalanceError
from bessemer.layers import balance, report_misclassified

ADAPTIVE = {"beta": 1.2, "epsilon": 0.9, "misclassified": 0.5, "contributing": 0.97, "keep_norm": True}


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(8) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).double()


def gradients(model, images, labels):
    # scaled per sample, so that one half of the batch holds the largest gradients
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    logits = report_misclassified(inner, model(images), labels)
    cross_entropy(logits, labels).backward()
    return [parameter.grad.clone() for parameter in inner.parameters()]


def work(rank, port, found):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=30))
    try:
        images, labels = batch()
        model = DistributedDataParallel(network())
        with balance(model.module, 1.2, 0.8, misclassified=0.5):
            half = slice(4 * rank, 4 * rank + 4)
            found[f"gradients {rank}"] = gradients(model, images[half], labels[half])
            uneven = slice(0, 3) if rank else slice(0, 4)
            try:
                gradients(model, images[uneven], labels[uneven])
            except BalanceError as problem:
                found[f"refusal {rank}"] = str(problem)
        model = DistributedDataParallel(network())
        with balance(model.module, **ADAPTIVE):
            found[f"adaptive {rank}"] = gradients(model, images[half], labels[half])
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch is built without torch.distributed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_compute_the_gradients_of_one():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    images, labels = batch()
    model = network()
    with balance(model, 1.2, 0.8, misclassified=0.5):
        expected = gradients(model, images, labels)
    alone = copy.deepcopy(network())
    with balance(alone, 1.2, 0.8, misclassified=0.5):
        half = gradients(alone, images[:4], labels[:4])
    adaptive = network()
    with balance(adaptive, **ADAPTIVE):
        also_expected = gradients(adaptive, images, labels)
    with multiprocessing.Manager() as manager:
        found = manager.dict()
        multiprocessing.spawn(work, (port, found), nprocs=2)
        for rank in (0, 1):
            for one, other in zip(found[f"gradients {rank}"], expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
            for one, other in zip(found[f"adaptive {rank}"], also_expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
            assert "from 3 to 4" in found[f"refusal {rank}"]
    assert not torch.allclose(half[0], expected[0], rtol=1e-3), "a local maximum would have passed"
