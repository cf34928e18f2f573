"""Consistent batch norm: a network trains with the very function that it will be tested as.

In training a batch norm normalises by the statistics of its batch, afterwards by running estimates of them, so attack
and test meet another function than the one that learned. Xie and Yuille ("Intriguing properties of adversarial training
at scale", ICLR 2020) find robustness in making the two agree. Here they do so by using the running estimates in both,
from a point on that the caller chooses: they must have settled by then, since they stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bessemer.errors import UsageError
from bessemer.layers.batch_norms import batch_norms


@contextmanager
def consistent(model: nn.Module) -> Iterator[None]:
    """Inside, the model's batch norms normalise by their running statistics also in training, and keep them unchanged.

    Ordinary, mixture and synchronised ones. Gamma and beta learn as before; the rest of the model does not notice. The
    backward pass of a forward pass made inside belongs inside, too, where activations are recomputed. A compiled
    model is compiled again.

    Raises `UsageError` where there is no batch norm, or one without running statistics.
    """
    norms = batch_norms(model, "consistent")
    for norm in norms:
        if norm.running_mean is None:
            raise UsageError("a batch norm without running statistics cannot normalise by them in training")
    changed = [norm for norm in norms if not isinstance(norm, _Consistent)]
    for norm in changed:
        norm.__class__ = _consistent_class(type(norm))
    try:
        yield
    finally:
        for norm in changed:
            plain: Any = norm
            plain.__class__ = plain._plain


class _Consistent:
    """What a batch norm is besides its own class: in evaluation mode for the length of each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        training = layer.training
        layer.training = False
        try:
            return super().forward(x)  # type: ignore[misc]
        finally:
            layer.training = training


_CLASSES: dict[type[nn.Module], type[Any]] = {}


def _consistent_class(kind: type[nn.Module]) -> type[Any]:
    """The class of a consistent batch norm; exchanging it keeps `isinstance`, parameter names and `state_dict`."""
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Consistent{kind.__name__}", (_Consistent, kind), {"_plain": kind})
    return _CLASSES[kind]
