"""Training methods: one file each, one row in `METHODS`."""

from bessemer.training.methods.adv_prop import AdvProp
from bessemer.training.methods.adversarial import Adversarial
from bessemer.training.methods.bang import Bang
from bessemer.training.methods.consistent_norm import ConsistentNorm
from bessemer.training.methods.fast_fgsm import FastFGSM
from bessemer.training.methods.free import Free
from bessemer.training.methods.logit_pairing import LogitPairing
from bessemer.training.methods.low_rank import LowRank
from bessemer.training.methods.mart import Mart
from bessemer.training.methods.method import Method
from bessemer.training.methods.mixture import Mixture
from bessemer.training.methods.only_layers import OnlyLayers
from bessemer.training.methods.plain import Plain
from bessemer.training.methods.trades import Trades
from bessemer.training.methods.weight_perturbation import WeightPerturbation

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "bang": Bang,
    "adversarial": Adversarial,
    "fast-fgsm": FastFGSM,
    "free": Free,
    "trades": Trades,
    "mart": Mart,
    "logit-pairing": LogitPairing,
    "mixture": Mixture,
    "adv-prop": AdvProp,
    "weight-perturbation": WeightPerturbation,
    "consistent-norm": ConsistentNorm,
    "low-rank": LowRank,
    "only-layers": OnlyLayers,
}

__all__ = [
    "METHODS",
    "AdvProp",
    "Adversarial",
    "Bang",
    "ConsistentNorm",
    "FastFGSM",
    "Free",
    "LogitPairing",
    "LowRank",
    "Mart",
    "Method",
    "Mixture",
    "OnlyLayers",
    "Plain",
    "Trades",
    "WeightPerturbation",
]
