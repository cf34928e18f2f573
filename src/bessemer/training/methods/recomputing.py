"""Which models run parts of their forward pass again when the backward pass reaches them."""

from __future__ import annotations

from torch import nn


def recomputes(model: nn.Module) -> bool:
    """Whether some part of the model keeps no activations (its `checkpointing`, as in `bessemer.models`)."""
    return any(getattr(module, "checkpointing", False) is True for module in model.modules())
