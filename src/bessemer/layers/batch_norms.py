"""Finding a model's batch norms, and putting something else in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bessemer.errors import UsageError


def batch_norms(model: nn.Module, wanted: str) -> list[_BatchNorm]:
    """All batch norms of a model: ordinary, synchronised, and the branches inside mixtures.

    wanted: what they are to be made, for the message. Raises `UsageError` where there is none, or one has no sizes yet.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise UsageError(
            f"the model has no batch norm that could be made {wanted}; take one that has, such as a resnet"
        )
    for norm in norms:
        if isinstance(norm, nn.modules.lazy.LazyModuleMixin) and norm.has_uninitialized_params():
            raise UsageError(f"a lazy batch norm has no sizes yet; call the model once before it is made {wanted}")
    return norms


def replaced(model: nn.Module, kind: type[Any], made: Callable[[Any], nn.Module]) -> nn.Module:
    """The model with each module of a kind exchanged for what `made` makes of it, everywhere it is used."""
    exchanged: dict[nn.Module, nn.Module] = {}

    def instead(module: nn.Module) -> nn.Module:
        if module not in exchanged:
            exchanged[module] = made(module)
        return exchanged[module]

    if isinstance(model, kind):
        return instead(model)
    for parent in list(model.modules()):
        # not named_children: it shows a module once that is there under two names
        for name, child in parent._modules.items():
            if isinstance(child, kind):
                parent._modules[name] = instead(child)
    return model
