"""What a method keeps in the model while it trains: it is saved with every checkpoint, and taken off in the end."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn

PREFIX = "installed_"  # of the submodule's name: its state is the method's, not a part of the trained network


def install(model: nn.Module, name: str, module: nn.Module, until_done: ExitStack) -> None:
    """Make `module` a part of the model until training is done; its buffers should be alike in all processes.

    name: the method's, so that two methods do not meet in one place.
    """
    model.add_module(PREFIX + name, module)
    until_done.callback(delattr, model, PREFIX + name)
