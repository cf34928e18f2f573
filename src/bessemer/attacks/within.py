"""A minimal attack, asked a bounded question: is there a misclassified point inside this ball?

The nearest point that the minimal attack finds answers it where it lies inside. Where it does not, the point is
projected onto the ball: legal, though seldom misclassified. AutoAttack uses FAB this way (Croce and Hein, "Reliable
evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", 2020).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bessemer.attacks.attack import Attack, Images, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.errors import UsageError
from bessemer.threat import Threat


@dataclass(frozen=True)
class Within(Attack):
    """The nearest point that `attack` finds, brought into the ball.

    attack: a minimal one, which searches in the threat's norm or in none (`FGSLine`, `HotCold`). Where it has a field
    `enough` and only verdicts count, it is told to stop at the threat's radius. Raises `UsageError` for another kind of
    attack, another norm, or another box than the attack's own.
    """

    threat: Threat
    attack: Attack

    kind: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        name = type(self.attack).__name__
        if self.attack.kind != "minimal":
            raise UsageError(f"Within needs an attack that seeks the nearest point; {name} is {self.attack.kind}")
        norm = getattr(self.attack, "norm", None)
        if norm not in (None, self.threat.norm):
            raise UsageError(f"Within: {name} measures in {norm}, {self.threat!r} in {self.threat.norm}; take one norm")
        if self.threat.box != self.attack.box:
            raise UsageError(f"Within: {name} stays in {self.attack.box}, not in the box of {self.threat!r}")

    def passes(self, classes: int) -> tuple[int, int]:
        """As the attack needs."""
        return self.attack.passes(classes)

    def remarks(self, classes: int) -> list[str]:
        """As the attack says."""
        return self.attack.remarks(classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """The attack's own search."""
        attack: Any = self.attack
        if until_success and hasattr(attack, "enough"):
            attack = replace(attack, enough=self.threat.eps)
        found: Tensor = attack.search(oracle, images, goal, seed, index, until_success)
        inside = self.threat.size(found - images) <= self.threat.eps
        return torch.where(column(inside, found), found, self.threat.project(found, images))
