"""Two processes normalise like one: statistics, outputs and gradients are those of the whole batch."""

import os
import socket
from contextlib import closing
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bessemer.errors import UsageError
from bessemer.layers import (
    SynchronizedBatchNorm,
    consistent,
    keep_branch,
    mixture_norm,
    recomputed,
    route,
    synchronized,
)

BOTH = {"clean": 4, "adversarial": 4}
MIXTURES = [(True, True), (True, False), (False, True), (False, False)]


class Network(nn.Module):
    """Batch norms of three kinds, one of them inside a recomputed block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, affine=False, momentum=None))
        self.head = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(x + recomputed(self.block, x)).mean((2, 3)))


def network():
    torch.manual_seed(0)
    return Network().double()


def batch():
    """Eight images, far from zero and unlike one another, so that each half has statistics of its own."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images * torch.linspace(1, 5, 8, dtype=torch.float64).view(-1, 1, 1, 1) + 50, torch.arange(8) % 3


def step(model, call, images, labels, scale=1.0):
    """What one step leaves: the loss is a mean, so `scale` is the share of the batch that this process holds."""
    x = images.clone().requires_grad_()
    logits = call(x)
    cross_entropy(logits, labels).backward()
    parameters = {f"weight {name}": parameter.grad for name, parameter in model.named_parameters()}
    buffers = {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    return {"logits": logits.detach(), "images": x.grad * scale, **parameters, **buffers}


def work(rank, port, found):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        images, labels = batch()
        half = slice(4 * rank, 4 * rank + 4)
        model = synchronized(network())
        parallel = DistributedDataParallel(model)
        found["plain", rank] = step(model, parallel, images[half], labels[half], 0.5)
        uneven = slice(0, 3) if rank == 0 else slice(3, 8)
        found["uneven", rank] = synchronized(network())(images[uneven]).detach()
        own = torch.cat([images[:4][2 * rank : 2 * rank + 2], images[4:][2 * rank : 2 * rank + 2]])
        targets = torch.cat([labels[:4][2 * rank : 2 * rank + 2], labels[4:][2 * rank : 2 * rank + 2]])
        for switches in MIXTURES:
            model = synchronized(mixture_norm(network(), tuple(BOTH), *switches))
            parallel = DistributedDataParallel(model)
            joint = route(parallel, dict.fromkeys(BOTH, 2))
            found[switches, rank] = step(model, joint, own, targets, 0.5)
        model.eval()
        found["evaluation", rank] = route(model, "clean")(own).detach()
        with consistent(model.stem.train()):
            found["consistent", rank] = route(model.stem, "clean")(own).detach()
        single = distributed.new_group([rank], use_local_synchronization=True)
        found["alone", rank] = synchronized(network(), single)(images[half]).detach()
        x = images[half].float() + 3e4
        layer = synchronized(nn.BatchNorm2d(1))
        found["far", rank] = layer(x).detach()
        with torch.autocast("cpu", torch.bfloat16):
            found["half", rank] = layer(images[half].bfloat16()).dtype
        try:
            layer(torch.ones(1 - rank, 1, 1, 1))
        except UsageError as problem:
            found["refusal", rank] = str(problem)
    finally:
        distributed.destroy_process_group()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.skipif(not distributed.is_available(), reason="this torch is built without torch.distributed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_normalise_like_one():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    images, labels = batch()
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        multiprocessing.spawn(work, (port, shared), nprocs=2)
        found = dict(shared)

    def compare(key, expected, rows):
        for rank in (0, 1):
            one = found[key, rank]
            assert one.keys() == expected.keys()
            for name, value in expected.items():
                close(one[name], value[rows[rank]] if name in ("logits", "images") else value)

    model = network()
    compare("plain", step(model, model, images, labels), [slice(0, 4), slice(4, 8)])
    close(torch.cat([found["uneven", 0], found["uneven", 1]]), network()(images).detach())
    for switches in MIXTURES:
        model = mixture_norm(network(), tuple(BOTH), *switches)
        whole = step(model, route(model, BOTH), images, labels)
        compare(switches, whole, [[0, 1, 4, 5], [2, 3, 6, 7]])
    apart = network()
    assert not torch.allclose(apart(images[:4]), found["plain", 0]["logits"], rtol=1e-3), (
        "local means would have passed"
    )
    model.eval()
    for rank, rows in enumerate([[0, 1, 4, 5], [2, 3, 6, 7]]):
        # the last batch norm has no running statistics: it goes by each process's own batch
        close(found["evaluation", rank], route(model, "clean")(images[rows]).detach())
        close(found["consistent", rank], route(model.stem, "clean")(images[rows]).detach())
        close(found["alone", rank], network()(images[4 * rank : 4 * rank + 4]).detach())
        assert found["half", rank] == torch.bfloat16
        assert "more than one value" in found["refusal", rank]
    whole = nn.BatchNorm2d(1).double()((images.float() + 3e4).double()).detach()
    torch.testing.assert_close(torch.cat([found["far", 0], found["far", 1]]).double(), whole, rtol=0, atol=5e-3)


def test_one_process_is_ordinary_batch_norm():
    plain, layer = network(), synchronized(network())
    images, labels = batch()
    for training in (True, False):
        plain.train(training), layer.train(training)
        expected = step(plain, plain, images, labels)
        for name, value in step(layer, layer, images, labels).items():
            assert torch.equal(value, expected[name])


def test_parameters_and_buffers_stay_the_same_tensors():
    model = mixture_norm(network()).eval()
    before = dict(model.named_parameters()), dict(model.named_buffers())
    assert synchronized(model) is model
    assert all(parameter is before[0][name] for name, parameter in model.named_parameters())
    assert all(buffer is before[1][name] for name, buffer in model.named_buffers())
    assert model.state_dict().keys() == mixture_norm(network()).state_dict().keys()
    assert sum(isinstance(module, SynchronizedBatchNorm) for module in model.modules()) == 6
    assert not any(module.training for module in model.modules())
    assert isinstance(keep_branch(model, "clean").stem[1], SynchronizedBatchNorm)
    assert isinstance(synchronized(nn.BatchNorm1d(2)), SynchronizedBatchNorm)
    later = mixture_norm(synchronized(nn.BatchNorm1d(2)), affine=False)
    assert isinstance(later.norms["clean"], SynchronizedBatchNorm)


def test_a_model_without_batch_norm_is_left_as_it_is():
    model = nn.Linear(2, 2)
    assert synchronized(model) is model
