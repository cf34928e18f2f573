"""How a network is trained: the loop, its optimiser and schedules, recipes and runs, and one file a training method."""

from bessemer.training.chain import initial_weights, starting_weights
from bessemer.training.checkpoint import Checkpoint
from bessemer.training.methods import (
    METHODS,
    Adversarial,
    AdvProp,
    Bang,
    ConsistentNorm,
    FastFGSM,
    Free,
    LogitPairing,
    LowRank,
    Mart,
    Method,
    Mixture,
    OnlyLayers,
    Plain,
    Trades,
    WeightPerturbation,
)
from bessemer.training.optimizers import SGD, Factor, parameter_groups
from bessemer.training.recipe import Recipe, recipes
from bessemer.training.run import Moment, branches, load, train
from bessemer.training.schedules import SCHEDULES
from bessemer.training.stalling import Stalling, stalling_of
from bessemer.training.together import train_together
from bessemer.training.trainer import fit

__all__ = [
    "METHODS",
    "SCHEDULES",
    "SGD",
    "AdvProp",
    "Adversarial",
    "Bang",
    "Checkpoint",
    "ConsistentNorm",
    "Factor",
    "FastFGSM",
    "Free",
    "LogitPairing",
    "LowRank",
    "Mart",
    "Method",
    "Mixture",
    "Moment",
    "OnlyLayers",
    "Plain",
    "Recipe",
    "Stalling",
    "Trades",
    "WeightPerturbation",
    "branches",
    "fit",
    "initial_weights",
    "load",
    "parameter_groups",
    "recipes",
    "stalling_of",
    "starting_weights",
    "train",
    "train_together",
]
