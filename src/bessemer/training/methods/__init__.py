"""Training methods: one file each, one row in `METHODS`."""

from bessemer.training.methods.adversarial import Adversarial
from bessemer.training.methods.bang import Bang
from bessemer.training.methods.low_rank import LowRank
from bessemer.training.methods.method import Method
from bessemer.training.methods.only_layers import OnlyLayers
from bessemer.training.methods.plain import Plain

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "bang": Bang,
    "adversarial": Adversarial,
    "low-rank": LowRank,
    "only-layers": OnlyLayers,
}

__all__ = ["METHODS", "Adversarial", "Bang", "LowRank", "Method", "OnlyLayers", "Plain"]
