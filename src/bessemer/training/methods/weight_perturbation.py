"""Adversarial weight perturbation: the loss at the worst weights nearby, not at the weights themselves.

    v_l  =  gamma · |w_l| / |g_l| · g_l,   g = ∇_w loss(w),  for each weight w_l          loss = loss(w + v)

D. Wu, S.-T. Xia and Y. Wang, "Adversarial weight perturbation helps robust generalization", 2020, with one step of
ascent, as in their experiments. Weights are parameters of more than one dimension, as in the authors' code; biases and
norms stay as they are. v has no gradient of its own, so what the optimiser gets is the gradient at w + v. The authors
make its whole step there and then take v away again, which differs in one point: their weight decay shrinks w + v, the
optimiser's here shrinks w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bessemer import processes
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.training.methods.method import Around, Losses, Method
from bessemer.training.methods.plain import Plain
from bessemer.training.methods.recomputing import recomputes


@dataclass(frozen=True)
class WeightPerturbation(Around):
    """Any training method, its loss taken at perturbed weights.

    gamma: the size of the perturbation, as a share of each weight's own length. warmup: so many iterations first train
    without it. inside: the method; its adversarial images are made once, at the weights themselves.

    The ascent costs a forward and a backward pass. It leaves no trace in batch norms, and takes the gradient over the
    whole batch where several processes share one; a batch that is worked through in parts (accumulation) would be
    perturbed part by part. Around it, BANG balances the gradient of the ascent as well.
    """

    gamma: float = 0.005
    warmup: int = 0
    inside: Method = Plain()

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise UsageError(f"gamma should be a number from 0 upwards, found {self.gamma}")
        if self.warmup < 0:
            raise UsageError(f"warmup is a number of iterations from 0 upwards, found {self.warmup}")
        if self.inside.updates != 1:
            raise UsageError(
                f"weights are perturbed for one update of each batch, and {type(self.inside).__name__} makes "
                f"{self.inside.updates}; perturb another method's"
            )

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """As the method inside. Raises `UsageError` where the model computes activations a second time."""
        if recomputes(model):
            raise UsageError(
                "the model computes activations a second time in the backward pass (checkpointing), when its weights "
                "are no longer perturbed; build it with checkpointing = false"
            )
        return super().prepare(model, until_done)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the method inside at the perturbed weights."""
        if batch.iteration < self.warmup or not self.gamma:
            return self.inside.loss(model, batch)
        batch = self.inside.attacked(model, batch)
        perturbed = {name: weight + change for name, weight, change in self._changes(model, batch)}
        return self.inside.loss(_Seen(model, perturbed), batch)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """One loss."""
        yield self.loss(model, batch)

    def _changes(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each weight with its perturbation."""
        weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
        weights = {name: weight for name, weight in weights.items() if weight.requires_grad}
        # copies: running statistics are to see the second pass alone, and no hook of the weights a gradient of this one
        copies = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.enable_grad():
            # of the sum over the batch: the mean underflows earlier, and only the direction counts
            loss = len(batch) * self.inside.loss(_Seen(model, {**copies, **buffers}), batch)
            found = torch.autograd.grad(loss, list(copies.values()), allow_unused=True)
        used = [name for name, gradient in zip(copies, found, strict=True) if gradient is not None]
        together = processes.total(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
        for name, gradient in zip(used, together.split([weights[name].numel() for name in used]), strict=True):
            weight = weights[name]
            length = gradient.norm()
            factor = self.gamma * weight.detach().norm() / length.where(length > 0, 1.0)
            yield name, weight, factor * gradient.view_as(weight)


class _Seen(nn.Module):
    """A model seen with other tensors in the place of some of its own, which stay as they are."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self._tensors = model, tensors
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.model, self._tensors, (images,))
        return logits
