"""Activation checkpointing that leaves a network as one forward pass would.

Very deep networks do not fit in memory with all their activations, so a block keeps only its input, and its forward
pass runs a second time when the backward pass reaches it (T. Chen, B. Xu, C. Zhang and C. Guestrin, "Training deep
nets with sublinear memory cost", 2016, arXiv:1604.06174). With PyTorch's own checkpointing every batch norm would
update its running statistics twice, and a mixture norm would find no route in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bessemer.layers.balance import _Balanced, _Shared
from bessemer.layers.mixture_norm import in_force, routes_in_force


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """What `block(x)` gives, without its activations being kept: the backward pass computes them again.

    Outputs, gradients and buffers are those of `block(x)`. The second pass draws the same random numbers, works on
    copies of all buffers, and takes the route (`layers.route`) that the first one took. The block's modules must be in
    the same mode, training or evaluation, when the backward pass comes, and inside or outside of `layers.consistent`.
    """
    if torch.compiler.is_compiling():  # the compiler's own checkpointing writes no buffer twice, and knows the route
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        routes = routes_in_force(block)
        batches = {part._shared: part._shared.batch for part in block.modules() if isinstance(part, _Balanced)}
        return nullcontext(), _again(block, in_force(routes), batches)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _again(block: nn.Module, on_route: AbstractContextManager[None], batches: Mapping[_Shared, int]) -> Iterator[None]:
    """Around the second pass: all that the first one found, and copies of the buffers to write into."""
    # the copies stand in the buffers' place: to write back in place would tell autograd that what it saved has changed
    places = [(part, dict(part._buffers)) for part in block.modules() if part._buffers]
    later = {shared: (shared.batch, shared.probes) for shared in batches}
    try:
        for part, buffers in places:
            part._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
        for shared, batch in batches.items():
            shared.batch, shared.probes = batch, []  # the first pass reported its own probes
        with on_route:
            yield
    finally:
        for part, buffers in places:
            part._buffers.update(buffers)
        for shared, (batch, probes) in later.items():
            shared.batch, shared.probes = batch, probes
