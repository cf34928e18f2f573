"""What balancing costs: a BANG step over a plain one, in the layout Bessemer trains in (target: at most 1.05).

Where the rest goes on LeNet: about 90 more operations, nearly all on N numbers (the rates). The large passes over a
convolution's channels are spared where they cost most: at the first layer, whose input is scaled instead (before that,
CIFAR-quick's ratio was 1.13). The same for the other layers needs a backward pass written by hand that also hands the
input's gradient on, for a point or two; it was left out.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.layers import balance
from bessemer.models import CifarQuick, LeNet
from networks import resnet18
from timing import ratios


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, times: int) -> None:
    """Some forward and backward passes and updates."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    for _ in range(times):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


def measure() -> dict[str, dict]:
    """Ratios by network, of the smaller ones compiled too."""
    found = {}
    for name, make, shape, times, compiled in (
        ("LeNet, batch 64", LeNet, (64, 1, 28, 28), 15, False),
        ("CIFAR-quick, batch 100", CifarQuick, (100, 3, 32, 32), 5, False),
        ("ResNet-18, batch 16", resnet18, (16, 3, 32, 32), 1, False),
        ("LeNet, batch 64, compiled", LeNet, (64, 1, 28, 28), 15, True),
        ("CIFAR-quick, batch 100, compiled", CifarQuick, (100, 3, 32, 32), 5, True),
    ):
        torch.manual_seed(0)
        images, labels = torch.rand(shape), torch.randint(0, 10, shape[:1])
        plain, balanced = (make().to(memory_format=torch.channels_last) for _ in range(2))
        balanced.load_state_dict(plain.state_dict())
        with balance(balanced, beta=1.0, epsilon=0.8):
            one, other = (torch.compile(model, fullgraph=True) if compiled else model for model in (balanced, plain))
            found |= ratios(
                {f"BANG step / plain step: {name}": lambda m=one, x=images, y=labels, n=times: step(m, x, y, n)},
                lambda m=other, x=images, y=labels, n=times: step(m, x, y, n),
            )
    return found
