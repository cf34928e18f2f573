"""Weights spread over processes: here one process, whose gradients are those of the whole network."""

import copy

import pytest
import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from bessemer.models import ResNet
from bessemer.training import sharding


@pytest.fixture
def alone():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_network_with_projected_short_cuts_can_be_spread(alone):
    torch.manual_seed(0)
    whole = ResNet(depth=18, width=4)
    spread = copy.deepcopy(whole)
    sharding.spread(spread)
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for model in (whole, spread):
        cross_entropy(model(images), labels).backward()
    for (name, one), other in zip(whole.named_parameters(), spread.parameters(), strict=True):
        torch.testing.assert_close(sharding.whole(other.grad), one.grad, msg=lambda said, name=name: f"{name}: {said}")
