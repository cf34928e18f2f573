"""Bessemer trains image classifiers that hold under perturbation, attacks them, measures what is left, and shows it.

The front door:

    import bessemer as bs

    adversarial = bs.attacks.PGD(bs.Linf(8 / 255), steps=40)(model, images, labels)
    evaluation = bs.evaluate(model, (images, labels), suite="quick", threat=bs.Linf(0.1))
    bs.report([evaluation], "report.html")

    with bs.balance(model, beta=1.0, epsilon=0.815):
        ...  # your own training loop, with BANG

Images are floats in [0, 1] of shape (N, C, H, W); a model is any callable from images to logits.
"""

from bessemer import adapters, attacks, data, models
from bessemer.errors import BessemerError
from bessemer.evaluation import evaluate, pass_score
from bessemer.layers import balance
from bessemer.purification.purify import purify
from bessemer.records import Evaluation
from bessemer.records.purification import Purification
from bessemer.report import report
from bessemer.sweeps import sweep
from bessemer.threat import L1, L2, Linf
from bessemer.training import Adversarial, Bang, LowRank, OnlyLayers, Plain, Recipe, load, train

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "Adversarial",
    "Bang",
    "BessemerError",
    "Evaluation",
    "Linf",
    "LowRank",
    "OnlyLayers",
    "Plain",
    "Purification",
    "Recipe",
    "adapters",
    "attacks",
    "balance",
    "data",
    "evaluate",
    "load",
    "models",
    "pass_score",
    "purify",
    "report",
    "sweep",
    "train",
]
