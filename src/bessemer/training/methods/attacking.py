"""What methods share that attack the network they train."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from bessemer.attacks import Attack
from bessemer.attacks.wrapped import in_ball
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.training.methods.method import Method

MODES = ("evaluation", "training")


@dataclass(frozen=True)
class Perturbing(Method):
    """A method that makes adversarial images for every batch, by whatever attack.

    attack_mode: how the attack sees the network: in `evaluation` mode (running statistics, no dropout) or in `training`
    mode, where batch norms take the statistics of the attacked images; the training pass is in training mode either
    way. warmup: over so many iterations the radius climbs to its full size.
    """

    attack_mode: str = field(default="evaluation", kw_only=True)
    warmup: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.attack_mode not in MODES:
            raise UsageError(f"attack_mode should be evaluation or training, found {self.attack_mode!r}")
        if self.warmup < 0:
            raise UsageError(f"warmup is a number of iterations from 0 upwards, found {self.warmup}")
        inside = getattr(self, "inside", None)
        if isinstance(inside, Method) and inside.updates != 1:
            raise UsageError(
                f"{type(inside).__name__} makes several updates of a batch, so it cannot be inside "
                f"{type(self).__name__}; put it outside, or take another method"
            )

    def made(self, attack: Attack, model: nn.Module, batch: Batch) -> Tensor:
        """What an attack makes of the batch's images, at the radius and in the mode that are due."""
        if batch.iteration + 1 < self.warmup:
            any_attack: Any = attack
            share = (batch.iteration + 1) / self.warmup
            attack = in_ball(attack, replace(any_attack.threat, eps=share * any_attack.threat.eps))
        return attack(self.seen(model), batch.images, batch.labels, seed=batch.seed, index=batch.index)

    def seen(self, model: nn.Module) -> nn.Module:
        """The model as the attack is to see it, whichever mode it asks for."""
        return _InTraining(model) if self.attack_mode == "training" else model


@dataclass(frozen=True)
class Attacking(Perturbing):
    """A method that makes them by an attack of the user's choice, one for each image."""

    attack: Attack

    def __post_init__(self) -> None:
        super().__post_init__()
        require_radius(self.attack, self.warmup)

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with an adversarial image for each of its own."""
        if batch.adversarial is not None:
            return batch
        return replace(batch, adversarial=self.made(self.attack, model, batch))


def require_radius(attack: Attack, warmup: int) -> None:
    """Refuse (`UsageError`) a warm-up of an attack that has no radius to be warmed up."""
    if warmup and getattr(attack, "threat", None) is None:
        raise UsageError(f"warmup needs an attack with a radius, and {type(attack).__name__} has none")


class _InTraining(nn.Module):
    """A model that stays in the mode it is in, whatever it is told."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> _InTraining:
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits
