"""Layers that training leaves as they are."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn


def freeze(layer: nn.Module, until_done: ExitStack) -> None:
    """Keep a layer's own parameters as they are until training is done; a batch norm's running statistics, too.

    A frozen batch norm normalises by its running statistics, as in evaluation mode, also while the model is trained.
    Layers inside this one are not touched.
    """
    for parameter in layer.parameters(recurse=False):
        freeze_parameter(parameter, until_done)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        until_done.callback(layer.train)
        # at every pass, since the loop puts the whole model into training mode again and again
        until_done.callback(layer.register_forward_pre_hook(_evaluating).remove)


def freeze_parameter(parameter: Tensor, until_done: ExitStack) -> None:
    """Keep a parameter as it is until training is done."""
    until_done.callback(parameter.requires_grad_, parameter.requires_grad)
    parameter.requires_grad_(False)


def _evaluating(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    layer.training = False
