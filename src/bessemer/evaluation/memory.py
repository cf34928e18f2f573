"""How many images to judge at once: as many as a fixed share of memory holds while a gradient is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from bessemer.attacks import borrowed
from bessemer.attacks.attack import Model

LARGEST = 500  # beyond this a batch is no faster, and a kill loses more
ON_CPU = 2**29  # bytes; smaller batches are as fast there, and stay in the cache
ON_GPU = 0.25  # of what is free


def batch_size(model: Model, images: Tensor) -> int:
    """The number of images whose activations fit; measured on the first two, from what autograd keeps for them."""
    few = images[:2]
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), borrowed(model, images.device, 0):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(few.detach().clone().requires_grad_())
        weights = {part.untyped_storage().data_ptr() for part in _parameters(model)}
    # the gradient takes about as much again
    per_image = 2 * sum(size for place, size in held.items() if place not in weights) / max(1, len(few))
    free = ON_GPU * torch.cuda.mem_get_info(images.device)[0] if images.device.type == "cuda" else ON_CPU
    return max(1, min(LARGEST, int(free / max(1.0, per_image))))


def _parameters(model: Model) -> list[Tensor]:
    return list(model.parameters()) if isinstance(model, torch.nn.Module) else []
