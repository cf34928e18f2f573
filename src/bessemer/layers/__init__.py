"""What goes inside a network: gradient balancing, norms that know who is in a batch, denoising, recomputation."""

from bessemer.layers.balance import Balance, balance, rates, report_misclassified
from bessemer.layers.consistent_norm import consistent
from bessemer.layers.denoising import Denoising
from bessemer.layers.group_norm import group_norm
from bessemer.layers.mixture_norm import MixtureBatchNorm, Routed, branches, keep_branch, mixture_norm, route
from bessemer.layers.recomputed import recomputed
from bessemer.layers.synchronized_norm import SynchronizedBatchNorm, synchronized

__all__ = [
    "Balance",
    "Denoising",
    "MixtureBatchNorm",
    "Routed",
    "SynchronizedBatchNorm",
    "balance",
    "branches",
    "consistent",
    "group_norm",
    "keep_branch",
    "mixture_norm",
    "rates",
    "recomputed",
    "report_misclassified",
    "route",
    "synchronized",
]
