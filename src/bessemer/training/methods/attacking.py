"""What methods share that attack the network they train."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from bessemer.attacks import Attack
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.training.methods.method import Method

MODES = ("evaluation", "training")


@dataclass(frozen=True)
class Attacking(Method):
    """A method that makes adversarial images for every batch.

    attack_mode: how the attack sees the network: in `evaluation` mode (running statistics, no dropout) or in `training`
    mode, where batch norms take the statistics of the attacked images; the training pass is in training mode either
    way. warmup: over so many iterations the radius climbs to its full size.
    """

    attack: Attack
    attack_mode: str = field(default="evaluation", kw_only=True)
    warmup: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.attack_mode not in MODES:
            raise UsageError(f"attack_mode should be evaluation or training, found {self.attack_mode!r}")
        if self.warmup < 0:
            raise UsageError(f"warmup is a number of iterations from 0 upwards, found {self.warmup}")
        if self.warmup and not hasattr(self.attack, "threat"):
            raise UsageError(f"warmup needs an attack with a radius, and {type(self.attack).__name__} has none")

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with an adversarial image for each of its own."""
        if batch.adversarial is not None:
            return batch
        return replace(batch, adversarial=self.made(self.attack, model, batch))

    def made(self, attack: Attack, model: nn.Module, batch: Batch) -> Tensor:
        """What an attack makes of the batch's images, at the radius and in the mode that are due."""
        if batch.iteration + 1 < self.warmup:
            any_attack: Any = attack
            share = (batch.iteration + 1) / self.warmup
            attack = replace(any_attack, threat=replace(any_attack.threat, eps=share * any_attack.threat.eps))
        seen = _InTraining(model) if self.attack_mode == "training" else model
        return attack(seen, batch.images, batch.labels, seed=batch.seed, index=batch.index)


class _InTraining(nn.Module):
    """A model that stays in the mode it is in, whatever it is told; an attack gives back its buffers all the same."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> _InTraining:
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits
