"""What methods share that train the branches of a mixture norm (`bessemer.layers.mixture_norm`)."""

from __future__ import annotations

from torch import nn

from bessemer.errors import UsageError
from bessemer.layers import branches


def require_branches(model: nn.Module, *wanted: str) -> None:
    """Refuse (`UsageError`) a model that does not have these branches, or has others, which would not be trained."""
    found = branches(model)
    if set(found) != set(wanted):
        has = f"has the branches {', '.join(found)}" if found else "has no mixture norm"
        names = ", ".join(f'"{name}"' for name in wanted)
        raise UsageError(
            f"this method trains the branches {', '.join(wanted)}, but the model {has}; "
            f'in the recipe, set [norm] name = "mixture" and branches = [{names}]'
        )
