"""Training methods: one file each, one row in `METHODS`."""

from bessemer.training.methods.adversarial import Adversarial
from bessemer.training.methods.bang import Bang
from bessemer.training.methods.method import Method, classification_loss
from bessemer.training.methods.plain import Plain

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "bang": Bang,
    "adversarial": Adversarial,
}

__all__ = ["METHODS", "Adversarial", "Bang", "Method", "Plain", "classification_loss"]
