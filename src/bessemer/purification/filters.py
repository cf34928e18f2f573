"""The filters of a network's first layer, the only features that are pictures as they stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bessemer.attacks import borrowed
from bessemer.errors import ImagesError, ModelError, UsageError

LAYERS = (nn.Conv2d, nn.Linear)


def first_layer(model: nn.Module, shape: tuple[int, int, int] | None = None) -> str:
    """The name of the convolution or linear layer that a pass through the model comes to first.

    shape: of the images it takes, (C, H, W); not needed where the model has an `image_shape`.
    Raises `UsageError` where there is no such layer, or its weights are no pictures: of other channels than the image
    has, or in groups.
    """
    shape = _shape(model, shape)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    order: list[str] = []

    def noting(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: order.append(name)

    handles = [module.register_forward_pre_hook(noting(name)) for name, module in layers.items()]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), borrowed(model, device, 0):
            model(torch.full((1, *shape), 0.5, device=device))
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise UsageError("the model has no nn.Conv2d or nn.Linear that a pass comes to; it has no filters to show")
    name, shown = order[0], layers[order[0]].weight.shape
    pixels = shape if isinstance(layers[name], nn.Conv2d) else (math.prod(shape),)
    if shown[1] != pixels[0]:
        raise UsageError(
            f"{name}, the first layer of the model, does not look at the pixels of {tuple(shape)} images: "
            f"its weights are {tuple(shown)}"
        )
    return name


def filters(model: nn.Module, shape: tuple[int, int, int] | None = None) -> Float[Tensor, "units c height width"]:
    """The weights of the first layer as small images, signed; a linear layer's are as large as the image.

    They are the layer's own: where the model normalises its images first, they speak of normalised pixels. shape and
    errors are as for `first_layer`.
    """
    shape = _shape(model, shape)
    weight = model.get_submodule(first_layer(model, shape)).weight
    assert isinstance(weight, Tensor)
    return (weight.detach().clone() if weight.dim() == 4 else weight.detach().reshape(-1, *shape).clone()).float()


def _shape(model: nn.Module, shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if not isinstance(model, nn.Module):
        raise ModelError(f"filters are looked for in an nn.Module, not in a {type(model).__name__}")
    shape = getattr(model, "image_shape", None) if shape is None else shape
    if shape is None:
        raise UsageError("the model does not say what images it takes; give their shape (C, H, W)")
    if len(shape) != 3:
        raise ImagesError(f"the shape of an image is (C, H, W), not {tuple(shape)}")
    return shape[0], shape[1], shape[2]
