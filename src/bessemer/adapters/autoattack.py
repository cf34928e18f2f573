"""AutoAttack (Croce and Hein, ICML 2020) in its authors' own code, github.com/fra31/auto-attack."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bessemer.adapters.adapted import Foreign, Judged
from bessemer.attacks import Goal
from bessemer.attacks.attack import Images
from bessemer.threat import Threat


@dataclass(frozen=True, repr=False)
class AutoAttack(Foreign):
    """An object with `norm`, `epsilon` and `run_standard_evaluation(images, labels, bs)`.

    A copy of it, and of the attacks it holds, attacks the judged model; all images are one batch.
    """

    library: ClassVar[str] = "autoattack"

    def settings(self) -> dict[str, Any]:
        """Norm, radius, version, and which attacks."""
        names = ("norm", "epsilon", "version", "attacks_to_run", "seed")
        return {name: getattr(self.attack, name) for name in names if hasattr(self.attack, name)}

    def ball(self) -> tuple[str | None, float | None]:
        """Both are its settings."""
        return self.attack.norm, self.attack.epsilon

    def images(self, judged: Judged, images: Images, goal: Goal, threat: Threat | None, seed: int) -> Tensor:
        """One standard evaluation by the copy."""
        if goal.target is not None:
            raise self.untargetable()
        twin = _pointed_at(judged, self.attack, self.attack.model, images)
        for name, part in vars(twin).items():
            if any(value is self.attack.model for value in getattr(part, "__dict__", {}).values()):
                setattr(twin, name, _pointed_at(judged, part, self.attack.model, images))
        if getattr(twin, "seed", seed) is None:  # by the clock, it means
            twin.seed = seed
        return twin.run_standard_evaluation(images, goal.labels, bs=len(images))


def _pointed_at(judged: Judged, attack: Any, model: Any, images: Images) -> Any:
    """A copy of an attack that asks the judged model wherever the attack asked its own."""
    twin = copy(attack)
    for name, value in vars(attack).items():
        if value is model:
            setattr(twin, name, judged)
    if hasattr(twin, "device"):
        twin.device = images.device
    return twin
