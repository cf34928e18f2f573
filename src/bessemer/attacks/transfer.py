"""Transfer: search on a model one has, hope to fool the one that one has not.

Adversarial images of one network often fool another (Szegedy et al., "Intriguing properties of neural networks", 2014,
section 4.2; Papernot et al., "Practical black-box attacks against machine learning", 2017). Where a transferred attack
beats the same attack on the model itself, that model's gradients are masked (Athalye, Carlini and Wagner, 2018,
section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bessemer.attacks.attack import Images, Model, Oracle, borrowed, column
from bessemer.attacks.goal import Goal
from bessemer.attacks.wrapped import Wrapped, label


@dataclass(frozen=True, repr=False)
class Transfer(Wrapped):
    """The attack inside, searching on `model` (the surrogate) and judged on the model that is attacked (the victim).

    No image leaves the search early, since fooling the surrogate is not fooling the victim; a minimal attack's image
    that does not fool the victim is given back as the original. Passes and zero gradients are the surrogate's. It is
    given back as it was, like any model.
    """

    model: Model

    def __repr__(self) -> str:
        return f"Transfer({self.attack!r}, model={label(self.model)})"

    def passes(self, classes: int) -> tuple[int, int]:
        """As the attack inside, on the surrogate; minimal attacks ask the victim once."""
        forwards, backwards = self.attack.passes(classes)
        return forwards + (self.kind == "minimal"), backwards

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """The attack inside, all of it, on the surrogate."""
        with borrowed(self.model, images.device, seed):
            found = self.attack.search(oracle.asking(self.model), images, goal, seed, index, until_success=False)
        if self.kind != "minimal":
            return found
        return torch.where(column(oracle.fooled(found), images), found, images)
