"""Which normalisation layers a recipe's network has: the `[norm]` section.

The network is built as its architecture says, and its batch norms are then exchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn

from bessemer import layers


class Norm(ABC):
    """What takes the place of a network's batch norms."""

    @abstractmethod
    def installed(self, model: nn.Module) -> nn.Module:
        """The model with them exchanged, in place. Raises `UsageError` where it has none."""


@dataclass(frozen=True)
class BatchNorm(Norm):
    """The network's own layers."""

    def installed(self, model: nn.Module) -> nn.Module:
        """As it is."""
        return model


@dataclass(frozen=True)
class MixtureNorm(Norm):
    """A batch norm with several branches (`bessemer.layers.mixture_norm`).

    branches: their names. statistics, affine: whether each has its own mean and variance, its own gamma and beta.
    """

    branches: tuple[str, ...] = ("clean", "adversarial")
    statistics: bool = True
    affine: bool = True

    def installed(self, model: nn.Module) -> nn.Module:
        """Every batch norm with as many branches."""
        return layers.mixture_norm(model, self.branches, self.statistics, self.affine)


@dataclass(frozen=True)
class GroupNorm(Norm):
    """Group norm, which never looks beyond the image at hand (`bessemer.layers.group_norm`). groups: of channels."""

    groups: int = 32

    def installed(self, model: nn.Module) -> nn.Module:
        """Every batch norm exchanged for a group norm."""
        return layers.group_norm(model, self.groups)


NORMS: dict[str, type[Norm]] = {"batch": BatchNorm, "mixture": MixtureNorm, "group": GroupNorm}
