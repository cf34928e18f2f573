"""A network spread over the processes, for one that does not fit into the memory of each (PyTorch's FSDP2).

Every process keeps a share of each weight, of its gradient and of its velocity; a block is put together for its forward
and backward pass and taken apart again. S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion
parameter models", 2020, stage 3. Files hold whole tensors, so a run may go on spread over other processes, or not at
all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from bessemer import processes


def spread(model: nn.Module) -> None:
    """Spread a network's weights over all processes, in place, block by block.

    A block is what stands in an `nn.Sequential` and is none itself. The optimiser must be made afterwards.
    """
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415  (a second that others need not wait)

    device = next(model.parameters()).device
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP knows no other layout
    mesh = init_device_mesh(device.type, (processes.place()[1],))
    for parent in reversed(list(model.modules())):  # a short cut before the block that it stands in
        if isinstance(parent, nn.Sequential):
            for block in parent:
                if not isinstance(block, nn.Sequential) and next(block.parameters(), None) is not None:
                    fully_shard(block, mesh=mesh)
    # taken apart after each forward pass: an attack freezes the shares, and a whole weight would stay frozen
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_spread(model: nn.Module) -> bool:
    """Whether a process holds only its share of the weights: forward passes must then be made by all at once."""
    return _lies_in_shares(next(model.parameters(), None))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread; every process must ask for it."""
    spread_out: Any = tensor
    return spread_out.full_tensor() if _lies_in_shares(tensor) else tensor


def share(like: Tensor, tensor: Tensor) -> Tensor:
    """What a process holds of a whole tensor, where it holds only a share of `like`."""
    if not _lies_in_shares(like) or _lies_in_shares(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415  (as above)

    place: Any = like
    with torch.no_grad():
        return distribute_tensor(tensor.to(like.device), place.device_mesh, place.placements)


def _lies_in_shares(tensor: Tensor | None) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor
