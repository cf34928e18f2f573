"""BANG: batch adjusted network gradients.

Rozsa, Günther and Boult, "Towards Robust Deep Neural Networks with BANG", 2018, arXiv:1612.00138. The rule and how it
is attached are in `bessemer.layers.balance`; as a training method there is nothing more to it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from bessemer.errors import UsageError
from bessemer.layers import balance
from bessemer.training.methods.method import Around, Method
from bessemer.training.methods.plain import Plain


@dataclass(frozen=True)
class Bang(Around):
    """Any training method, with the gradients of every linear and convolution layer balanced.

    beta, epsilon: one number, or a table from layer-name patterns to numbers (`balance`). misclassified: the factor on
    epsilon for samples the current pass gets wrong (0.5 in the paper's CIFAR-10 experiments). bias: balance biases too.
    contributing: the share of the batch that is to contribute; where not 0, each layer takes at every step the smallest
    epsilon that achieves it, and `epsilon` is the largest allowed. keep_norm: beta is multiplied so that each weight
    gradient keeps about its norm.
    inside: the method whose gradients are balanced.
    """

    beta: float | dict[str, float] = 1.0
    epsilon: float | dict[str, float] = 0.815
    misclassified: float = 1.0
    bias: bool = True
    contributing: float = 0.0
    keep_norm: bool = False
    inside: Method = Plain()

    def __post_init__(self) -> None:
        for name in ("beta", "epsilon", "misclassified"):
            value = getattr(self, name)
            for number in value.values() if isinstance(value, dict) else (value,):
                if not 0 <= number < math.inf:
                    raise UsageError(f"BANG's {name} should be a number from 0 upwards, found {number}")
        if not 0 <= self.contributing <= 1:
            raise UsageError(f"BANG's contributing is a share of the batch, from 0 to 1, found {self.contributing}")

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """Attach the balance, until training is done."""
        model = self.inside.prepare(model, until_done)
        handle = balance(
            model, self.beta, self.epsilon, self.misclassified, self.bias, self.contributing, self.keep_norm
        )
        until_done.enter_context(handle)
        return model
