"""Batch norm over the batch of all processes, on GPUs and on CPUs.

PyTorch's `nn.SyncBatchNorm` computes on GPUs alone. Here the same layer also works on CPUs (gloo), by the equations:
with x̂ = (x - mean) / sqrt(var + eps) and y = gamma x̂ + beta,

    dE/dx = gamma / sqrt(var + eps) (dE/dy - mean(dE/dy) - x̂ mean(x̂ dE/dy)),

where every mean goes over the samples and pixels of all processes. Two processes then train like one with the whole
batch, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from bessemer.errors import UsageError
from bessemer.layers.batch_norms import batch_norms, replaced


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm over all processes; ordinary batch norm in evaluation mode, and where there is one process.

    On GPUs it computes what `nn.SyncBatchNorm` does, but is none: DistributedDataParallel refuses those on a CPU.
    Raises `UsageError` where all processes together hold a single value per channel.
    """

    process_group: Any = None  # the processes that share a batch; all unless given

    def forward(self, x: Tensor) -> Tensor:
        """The batch, normalised by the statistics of all processes."""
        if not self._several() or not self.training:
            return super().forward(x)
        if x.is_cuda:
            return nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]
        self._check_input_dim(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        running: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.track_running_stats:
            running = self.running_mean, self.running_var
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if self.momentum is None:
                    momentum = 1.0 / float(self.num_batches_tracked)
        return _Synchronized.apply(x, self.weight, self.bias, *running, self.eps, momentum, self.process_group)

    def _check_input_dim(self, input: Tensor) -> None:
        nn.SyncBatchNorm._check_input_dim(self, input)  # type: ignore[arg-type]

    def _check_non_zero_input_channels(self, input: Tensor) -> None:
        nn.SyncBatchNorm._check_non_zero_input_channels(self, input)  # type: ignore[arg-type]

    def _several(self) -> bool:
        ready = distributed.is_available() and distributed.is_initialized()
        return ready and distributed.get_world_size(self.process_group) > 1


class _Synchronized(torch.autograd.Function):
    """Batch norm whose means go over all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
        group: Any,
    ) -> Tensor:
        precise = _precise(x)
        mean, squares, count = _over_all(precise, group)
        if count < 2:
            raise UsageError("batch norm in training needs more than one value per channel; make the batch larger")
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
        scale = (squares / count + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.count, ctx.group = count, group
        y = (precise - _wide(mean, x)) * _wide(scale if weight is None else scale * weight, x)
        return (y if bias is None else y + _wide(bias, x)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        gradient = _precise(gradient)
        normal = (_precise(x) - _wide(mean, x)) * _wide(scale, x)
        dimensions = [0, *range(2, x.dim())]
        sums = torch.stack([gradient.sum(dimensions), (gradient * normal).sum(dimensions)])
        # these stay each process's own, as all weight gradients do until they are averaged
        of_bias, of_weight = sums.clone()
        flow = None
        if ctx.needs_input_grad[0]:
            distributed.all_reduce(sums, group=ctx.group)
            of_all = sums / ctx.count
            flow = gradient - _wide(of_all[0], x) - normal * _wide(of_all[1], x)
            flow = (flow * _wide(scale if weight is None else scale * weight, x)).to(x.dtype)
        own = (None, None) if weight is None else (of_weight.to(weight.dtype), of_bias.to(weight.dtype))
        biased = own[1] if ctx.needs_input_grad[2] else None
        return flow, own[0], biased, None, None, None, None, None


def synchronized(model: nn.Module, group: Any = None) -> nn.Module:
    """Take the statistics of every batch norm of a model over all processes, in place; also in a mixture's branches.

    group: the processes that share a batch; all unless given.

    Parameters and buffers stay the same tensors. Every process must make the same forward and backward passes. Returns
    the model, or what stands in its place where it is itself a batch norm; a model without batch norms is left as it
    is. Raises `UsageError` where one has no sizes yet.
    """
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        batch_norms(model, "synchronised")
    return replaced(model, _BatchNorm, lambda norm: _synchronized(norm, group))


def _synchronized(norm: _BatchNorm, group: Any) -> SynchronizedBatchNorm:
    made = SynchronizedBatchNorm(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
    made.process_group = group
    made.affine, made.weight, made.bias = norm.affine, norm.weight, norm.bias
    made.track_running_stats = norm.track_running_stats
    for name, buffer in norm._buffers.items():
        setattr(made, name, buffer)
    return made.train(norm.training)


def _over_all(x: Tensor, group: Any) -> tuple[Tensor, Tensor, int]:
    """Each channel's mean, its sum of squared differences from it, and how many values it has, over all processes.

    Processes' own means are put together (T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances", 1979): the mean of squares less the squared mean would cancel.
    """
    dimensions = [0, *range(2, x.dim())]
    count = x.numel() // x.shape[1]
    if count:
        squares, mean = torch.var_mean(x, dimensions, correction=0)
        own = torch.stack([mean, squares * count, torch.full_like(mean, count)])
    else:
        own = x.new_zeros(3, x.shape[1])
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    means, squares, counts = torch.stack(every, dim=1)
    total = counts[:, 0].double().sum()
    mean = (means * counts).sum(0) / total.to(means)
    squares = squares.sum(0) + ((means - mean).square() * counts).sum(0)
    return mean, squares, int(total)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    """One value per channel, of the shape that meets x."""
    return channels.view(-1, *[1] * (x.dim() - 2))
