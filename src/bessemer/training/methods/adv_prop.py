"""AdvProp: adversarial images as a further source of data, for better accuracy on clean ones.

    loss = mean over clean images, through the main batch norms
         + mean over adversarial images, through auxiliary batch norms         (weights 1 : 1)

Xie et al., "Adversarial examples improve image recognition", 2020, algorithm 1; all other weights are shared, and only
the main batch norms are kept in the end. With several auxiliary batch norms each has an attack strength of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import Attack
from bessemer.attacks.parts import AtLeast, Constant
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.layers import report_misclassified, route
from bessemer.training.methods.attacking import Attacking
from bessemer.training.methods.branched import require_branches


@dataclass(frozen=True)
class AdvProp(Attacking):
    """Train on clean and adversarial images, in one forward pass through a main and one or more auxiliary branches.

    main, auxiliary: the branches. strengths: for each auxiliary branch, what its attack's radius and step size are
    multiplied by. per_image: each image goes through one auxiliary branch only, and so has one strength; else through
    all of them, one after the other. label_smoothing: as in regular training. The rest as for every attacking method
    (`Attacking`); each attack goes through its own branch.

    Which strength an image gets is drawn anew in each epoch by the order of the images: the first share of a batch goes
    to the first branch, and so on. The shares are equal, so every branch has images in every batch; where the batch
    cannot be divided evenly they differ by one.
    """

    main: str = "clean"
    auxiliary: tuple[str, ...] = ("adversarial",)
    strengths: tuple[float, ...] = (1.0,)
    per_image: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.auxiliary or len(set(self.auxiliary) | {self.main}) <= len(self.auxiliary):
            raise UsageError(
                "main and auxiliary name branches that differ, an auxiliary one at least, found "
                f"{', '.join([self.main, *self.auxiliary])}"
            )
        if len(self.strengths) != len(self.auxiliary):
            raise UsageError(
                f"strengths needs a number for each auxiliary branch: {len(self.auxiliary)}, found {self.strengths}"
            )
        if not all(0 < strength < math.inf for strength in self.strengths):
            raise UsageError(f"strengths are factors above 0, found {self.strengths}")
        if set(self.strengths) != {1.0} and "threat" not in {own.name for own in fields(self.attack)}:
            raise UsageError(
                f"strengths need an attack with a radius of its own: {type(self.attack).__name__} has none"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing should lie between 0 and 1, found {self.label_smoothing}")

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """The model as it is. Raises `UsageError` where it does not have the branches."""
        require_branches(model, self.main, *self.auxiliary)
        return model

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with adversarial images.

        Where each image goes through several auxiliary branches they are of shape (n, branches, c, h, w).
        """
        if batch.adversarial is not None:
            return batch
        made = []
        for (name, rows), strength in zip(self._shares(len(batch)), self.strengths, strict=True):
            share = replace(batch, images=batch.images[rows], labels=batch.labels[rows], index=batch.index[rows])
            made.append(self.made(_stronger(self.attack, strength), route(model, name), share))
        return replace(batch, adversarial=torch.stack(made, 1) if self._several else torch.cat(made))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the mean over clean images and, for each time they were attacked, that over adversarial ones."""
        adversarial = self.attacked(model, batch).adversarial
        assert adversarial is not None
        times = len(self.auxiliary) if self._several else 1
        images = torch.cat([batch.images, *(adversarial.unbind(1) if self._several else [adversarial])])
        labels = batch.labels.repeat(1 + times)
        sizes = {name: len(range(len(batch))[rows]) for name, rows in self._shares(len(batch))}
        through = route(model, {self.main: len(batch), **sizes})
        logits = report_misclassified(through, through(images), labels)
        clean, other = logits.split([len(batch), times * len(batch)])
        smoothing = self.label_smoothing
        loss = cross_entropy(clean, batch.labels, label_smoothing=smoothing)
        return loss + times * cross_entropy(other, labels[len(batch) :], label_smoothing=smoothing)

    @property
    def branch(self) -> str:
        """The main one."""
        return self.main

    @property
    def _several(self) -> bool:
        """Whether each image is attacked several times."""
        return len(self.auxiliary) > 1 and not self.per_image

    def _shares(self, images: int) -> Iterator[tuple[str, slice]]:
        """Which images of a batch go through each auxiliary branch."""
        count = len(self.auxiliary)
        if self.per_image and images < count:
            raise UsageError(f"{images} images cannot be shared out among {count} auxiliary branches; take more")
        for place, name in enumerate(self.auxiliary):
            if self.per_image:
                yield name, slice(place * images // count, (place + 1) * images // count)
            else:
                yield name, slice(0, images)


def _stronger(attack: Attack, strength: float) -> Attack:
    """The attack with its radius, and its step size where it has one, so many times as large."""
    if strength == 1:
        return attack
    any_attack: Any = attack
    changes: dict[str, Any] = {"threat": replace(any_attack.threat, eps=strength * any_attack.threat.eps)}
    size = getattr(attack, "step_size", None)
    if isinstance(size, float | int):
        changes["step_size"] = strength * size
    elif isinstance(size, Constant | AtLeast) and size.size is not None:  # other rules follow the radius
        changes["step_size"] = replace(size, size=strength * size.size)
    stronger: Attack = replace(any_attack, **changes)
    return stronger
