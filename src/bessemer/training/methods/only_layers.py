"""Training some layers and no others.

Layer-wise purification asks of each layer of a clean network how much of adversarial training it can carry alone.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bessemer.errors import UsageError
from bessemer.training.methods.freezing import freeze
from bessemer.training.methods.method import Around, Method
from bessemer.training.methods.plain import Plain


@dataclass(frozen=True)
class OnlyLayers(Around):
    """Any training method, with every layer frozen whose name does not match.

    match: a shell pattern over the names of layers, or of what they are part of: `conv1`, `stages.2`, `stages.*.conv2`.
    A frozen batch norm keeps its running statistics, and normalises by them. inside: the method that trains.
    """

    match: str
    inside: Method = Plain()

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """Freeze the other layers, until training is done. Raises `UsageError` where no layer matches."""
        model = self.inside.prepare(model, until_done)
        layers = {name: layer for name, layer in model.named_modules() if _has_own(layer)}
        frozen = [layer for name, layer in layers.items() if not self._matches(name)]
        if len(frozen) == len(layers):
            raise UsageError(f"only-layers: {self.match!r} matches none of the layers {', '.join(layers)}")
        for layer in frozen:
            freeze(layer, until_done)
        return model

    def _matches(self, name: str) -> bool:
        parts = name.split(".")
        return any(fnmatchcase(".".join(parts[: end + 1]), self.match) for end in range(len(parts)))


def _has_own(layer: nn.Module) -> bool:
    """Whether a layer has anything that training could change: parameters, or running statistics."""
    return next(layer.parameters(recurse=False), None) is not None or isinstance(layer, _BatchNorm)
