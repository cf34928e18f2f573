"""Foolbox (Rauber et al., "Foolbox Native", JOSS 2020): attacks, and models with bounds and preprocessing."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from math import inf
from typing import Any, ClassVar

from torch import Tensor, nn

from bessemer.adapters.adapted import Foreign, Judged
from bessemer.attacks import Goal
from bessemer.attacks.attack import Images
from bessemer.errors import ModelError, UsageError
from bessemer.threat import Threat

_NORMS = {inf: "Linf", 2: "L2", 1: "L1"}


@dataclass(frozen=True, repr=False)
class Foolbox(Foreign):
    """An attack such as `foolbox.attacks.LinfPGD()`; its radius is the threat's.

    Of the images that Foolbox returns, those it clipped to the radius itself count.
    """

    library: ClassVar[str] = "foolbox"

    def settings(self) -> dict[str, Any]:
        """What it keeps."""
        return {name.strip("_"): value for name, value in vars(self.attack).items()}

    def ball(self) -> tuple[str | None, float | None]:
        """The norm of its distance; the radius comes with each call."""
        try:
            return _NORMS.get(self.attack.distance.p), None
        except (AttributeError, ValueError):  # no distance, or one that is chosen later
            return None, None

    def require(self, threat: Threat | None) -> None:
        """Also refuses a search without a radius where the attack needs one, and one with it where it has no norm."""
        super().require(threat)
        base = import_module("foolbox.attacks.base")
        inside = self.attack
        while isinstance(inside, base.Repeated):
            inside = inside.attack
        if threat is None and isinstance(inside, base.FixedEpsilonAttack):
            example = f"{self.ball()[0] or 'Linf'}(8 / 255)"
            raise UsageError(f"{self.name} searches a ball; say which: adapters.attack(…, {example})")
        if threat is not None and isinstance(inside, base.AttackWithDistance) and self.ball()[0] is None:
            raise UsageError(f"{self.name} has no norm; build it with distance=foolbox.distances.linf, .l2 or .l1")
        if threat is not None and threat.box is None:
            raise UsageError(f"{self.name} needs a box around the images, which the threat {threat} does not have")

    def images(self, judged: Judged, images: Images, goal: Goal, threat: Threat | None, seed: int) -> Tensor:
        """One call, through a Foolbox model around the judged one."""
        foolbox = import_module("foolbox")
        box = (0.0, 1.0) if threat is None else threat.box
        wrapped = foolbox.PyTorchModel(judged, bounds=box, device=images.device)
        if goal.target is None:
            criterion = foolbox.criteria.Misclassification(goal.labels)
        else:
            criterion = foolbox.criteria.TargetedMisclassification(goal.target)
        try:
            _, clipped, _ = self.attack(wrapped, images, criterion, epsilons=None if threat is None else threat.eps)
        except ValueError as problem:
            if goal.target is None or "criterion" not in str(problem):
                raise
            raise self.untargetable() from problem
        return clipped


class FoolboxNet(nn.Module):
    """A Foolbox model around a torch network, from images in [0, 1] to logits."""

    def __init__(self, foreign: Any, net: nn.Module) -> None:
        super().__init__()
        self.foreign, self.net = foreign, net

    def forward(self, images: Tensor) -> Tensor:
        """Into the model's bounds, through its preprocessing, through its network."""
        low, high = self.foreign.bounds
        scaled = low + (high - low) * images
        if not hasattr(self.foreign, "_preprocess_args"):  # a wrapper, which does more than preprocess
            return self.foreign(scaled)
        prepared = self.foreign._preprocess(import_module("eagerpy").astensor(scaled)).raw
        # not through the wrapper: it would keep the network it was built around, also where this one was copied
        return self.net(prepared)


def model(foreign: Any) -> nn.Module:
    """The network inside a Foolbox model, with the model's bounds and preprocessing."""
    inside = foreign
    while hasattr(inside, "_model"):  # wrappers first, then the function that `PyTorchModel` makes of its module
        inside = inside._model
    net = inspect.getclosurevars(inside).nonlocals.get("model") if inspect.isfunction(inside) else None
    if not isinstance(net, nn.Module):
        raise ModelError(f"foolbox.{type(foreign).__name__} holds no torch network; only PyTorch models can be judged")
    return FoolboxNet(foreign, net)
