"""What a network costs: its parameters, and the multiply-adds of one image's way through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bessemer.models.network import Network


@dataclass(frozen=True)
class Cost:
    """parameters: how many numbers are learned. multiply_adds: of one image's forward pass.

    Multiply-adds are those of convolutions, linear layers and matrix products, as the literature counts them under the
    name of FLOPs (ResNet-152: 11.5 · 10⁹). Each is two floating-point operations.
    """

    parameters: int
    multiply_adds: int


def cost(make: Callable[[], Network]) -> Cost:
    """The cost of the network that a call makes, found on the meta device: no weight is drawn or held in memory."""
    with torch.device("meta"):
        model = make().eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):  # counts nothing, and on the meta device takes most of the time
                setattr(module, name, nn.Identity())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *model.image_shape, device="meta"))
    return Cost(parameters, counter.get_total_flops() // 2)
