"""torchattacks (Kim, "Torchattacks: a PyTorch repository for adversarial attacks", 2020): attacks, and their models."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from bessemer.adapters.adapted import Foreign, Judged
from bessemer.attacks import Goal
from bessemer.attacks.attack import Images
from bessemer.errors import UsageError
from bessemer.models import Normalize
from bessemer.threat import Threat

_NOT_SETTINGS = ("attack", "model", "model_name", "device", "supported_mode", "attack_mode", "normalization_used")


@dataclass(frozen=True, repr=False)
class Torchattacks(Foreign):
    """An attack such as `torchattacks.PGD(model, eps=8/255)`.

    A copy of it attacks the judged model, whatever model it was built on, without normalisation: that is the judged
    model's own affair.
    """

    library: ClassVar[str] = "torchattacks"

    def settings(self) -> dict[str, Any]:
        """Its public attributes."""
        found = {
            name: value
            for name, value in vars(self.attack).items()
            if not name.startswith("_") and name not in _NOT_SETTINGS
        }
        return found if self.attack.targeted else {name: found[name] for name in found if name != "targeted"}

    def ball(self) -> tuple[str | None, float | None]:
        """Its `norm`, where it has the choice, and its `eps`."""
        return getattr(self.attack, "norm", None), getattr(self.attack, "eps", None)

    def images(self, judged: Judged, images: Images, goal: Goal, threat: Threat | None, seed: int) -> Tensor:
        """One call of the copy."""
        # the model is replaced wherever the attack, or an attack inside it, holds it
        twin = deepcopy(self.attack, {id(self.attack.model): judged})
        twin.set_model(judged)
        twin.set_device(images.device)
        twin._set_normalization_applied(None)
        if getattr(twin, "seed", seed) is None:  # by the clock, they mean
            for part in (twin, *twin._attacks.values()):
                part.seed = seed
        labels = goal.labels
        if goal.target is not None:
            try:
                twin.set_mode_targeted_by_label(quiet=True)
            except ValueError as problem:
                raise self.untargetable() from problem
            labels = goal.target
        elif twin.attack_mode == "targeted(label)":
            raise UsageError(f"{self.name} takes the labels for targets; call set_mode_default() on it, or give target")
        return twin(images, labels)


def model(attack: Any) -> nn.Module:
    """The model of a torchattacks attack, after the normalisation that the attack was told of."""
    used = attack.normalization_used
    if used is None:
        return attack.model
    mean, std = (used[name].flatten(1)[0] for name in ("mean", "std"))
    return nn.Sequential(Normalize(mean, std), attack.model)
