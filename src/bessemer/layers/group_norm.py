"""Group norm in the place of batch norm: no sample's answer depends on the others of its batch.

Y. Wu and K. He, "Group normalization", ECCV 2018 (arXiv:1803.08494). A mixed batch does nothing to it that it does to
batch norm, which is why Xie and Yuille ("Intriguing properties of adversarial training at scale", ICLR 2020) compare
with it.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bessemer.errors import UsageError
from bessemer.layers.batch_norms import batch_norms, replaced
from bessemer.layers.mixture_norm import MixtureBatchNorm


def group_norm(model: nn.Module, groups: int = 32) -> nn.Module:
    """Turn every batch norm of a model into a group norm with the same gamma and beta, in place.

    groups: how many, at most. A layer gets the largest number that divides its channels and leaves two channels or more
    in each group: 16 channels make 8 groups of 2, and a prime number of channels makes one group. A group of a single
    channel would be instance norm, whose answer is constant where the image has shrunk to one pixel.

    Returns the model, or what stands in its place where it is itself a batch norm. Running statistics are dropped, so
    the model must be trained (again). Raises `UsageError` where there is no batch norm, for a mixture, or no groups.
    """
    if groups < 1:
        raise UsageError(f"group norm needs 1 group or more, not {groups}")
    if any(isinstance(module, MixtureBatchNorm) for module in model.modules()):
        raise UsageError("the model has mixture batch norms, and group norm has no branches; call keep_branch first")
    batch_norms(model, "a group norm")
    return replaced(model, _BatchNorm, lambda norm: _grouped(norm, groups))


def _grouped(norm: _BatchNorm, groups: int) -> nn.GroupNorm:
    channels = norm.num_features
    most = max(1, min(groups, channels // 2))
    count = next(number for number in range(most, 0, -1) if channels % number == 0)
    made = nn.GroupNorm(count, channels, norm.eps, affine=False)
    made.affine, made.weight, made.bias = norm.affine, norm.weight, norm.bias
    return made.train(norm.training)
