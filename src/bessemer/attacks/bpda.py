"""Backward pass differentiable approximation: through a first stage that has no gradient, or a useless one.

A model f(x) = rest(g(x)) whose first stage g quantises, compresses or purifies its input has gradients that are zero,
random or absent. Where g(x) ≈ s(x) for a differentiable s, the forward pass keeps g and the backward pass takes s:

    ∇_x f(x) ≈ J_s(x)ᵀ ∇_z rest(z) at z = g(x)

Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", 2018, section 4.1.1 (s the identity,
since such a stage leaves images much as they were) and 4.1.2 (any s).

    class Defended(nn.Module):
        def forward(self, x):
            return self.network(quantise(x))

    BPDA(PGD(Linf(8 / 255)), stage=quantise, rest=defended.network)(defended, images, labels)

The model that is attacked is the whole one, and it alone says what counts as a success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bessemer.attacks.attack import Images, Model, Oracle, borrowed
from bessemer.attacks.goal import Goal
from bessemer.attacks.wrapped import Wrapped, label
from bessemer.errors import UsageError


def identity(images: Images) -> Images:
    """The images themselves."""
    return images


@dataclass(frozen=True, repr=False)
class BPDA(Wrapped):
    """The attack inside, searching on `rest(stage(x))` with the gradient of `rest(backward(x))`.

    stage: the first stage of the attacked model, any callable from images to what `rest` takes. rest: what comes after
    it, down to the logits. backward: a differentiable stand-in for the stage, which returns the same shape. Modules
    among them are taken in evaluation mode and given back as they were. What looks like a success is asked of the
    attacked model, which counts as a verification.
    Raises `UsageError` where the stage and its stand-in return different shapes.
    """

    stage: Callable[[Tensor], Tensor]
    rest: Model
    backward: Callable[[Tensor], Tensor] = identity

    def __repr__(self) -> str:
        parts = f"stage={label(self.stage)}, rest={label(self.rest)}, backward={label(self.backward)}"
        return f"BPDA({self.attack!r}, {parts})"

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """The attack inside, through a model whose stage has a gradient."""
        device = images.device
        with (
            borrowed(self.stage, device, seed),
            borrowed(self.rest, device, seed),
            borrowed(self.backward, device, seed),
        ):
            stand_in = oracle.asking(through=self._differentiable)
            return self.attack.search(stand_in, images, goal, seed, index, until_success)

    def _differentiable(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.stage(images)
        like = self.backward(images)
        if like.shape != value.shape:
            raise UsageError(
                f"BPDA: of images of shape {tuple(images.shape)} the stage makes {tuple(value.shape)}, its stand-in "
                f"{label(self.backward)} makes {tuple(like.shape)}; give a backward of the stage's shape"
            )
        return self.rest(_Straight.apply(value, like))


class _Straight(torch.autograd.Function):
    """The value of one tensor, with the gradient of another: exact, where adding and subtracting would round."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, like: Tensor) -> Tensor:
        # not the value itself nor a view of it: an in-place layer may follow
        return value.to(like.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
