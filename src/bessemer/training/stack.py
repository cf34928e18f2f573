"""Many models computed as one: their weights stacked, all of their passes one batched program.

A small model leaves a GPU idle: what it takes to start its layers is more than what it takes to compute them. Here the
models of a grid share the start. `torch.func.vmap` runs the forward pass of one model on the stacked weights of all, so
that a linear layer becomes one batched matrix product; one backward pass then gives every model its own gradient.

Two things differ between the models and are not left to vmap. Balancing (`bessemer.layers.balance`) takes norms, a
maximum, beta and epsilon per model; and dropout draws each model's mask from its own generator, the very mask that
`nn.Dropout` draws for it alone on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.layers.balance import rates, sample_norms
from bessemer.models import Normalize
from bessemer.training.methods import Bang, Method, Plain

LAYERS = (
    nn.Linear,
    nn.Conv2d,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.ReLU,
    nn.Flatten,
    nn.Identity,
    Normalize,
)  # that compute each sample by itself and keep nothing between two passes


class Stack(nn.Module):
    """Models of one architecture and one device that are trained as one.

    models: from now on their parameters are views into the stacked ones, and follow every update made there; their
    buffers are taken to be those of the first. methods: for each model, all plain or all `Bang`, differing in beta and
    epsilon alone. generators: for each model, on its device; dropout draws from it.

    network: the model whose parameters are the stacked ones, shape (models, …). losses: of the last batch, one a model.

    Raises `UsageError` where a method or a layer cannot be computed for several models at once.
    """

    losses: Float[Tensor, " models"]

    def __init__(
        self, models: Sequence[nn.Module], methods: Sequence[Method], generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self._objective, self._balancing = _understood(methods, next(models[0].parameters()).device)
        stacked, _ = stack_module_state(list(models))
        self.network = copy.deepcopy(models[0])
        for name, parameter in self.network.named_parameters():
            parameter.data = stacked[name].data
            for place, model in enumerate(models):
                model.get_parameter(name).data = stacked[name].data[place]
        for name, module in self.network.named_modules():
            _adapt(name, module, self._balancing, generators)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the models' losses, whose gradient is for each model that of its own.

        batch: one for all models, or one for each: images (models, N, C, H, W) and labels (models, N).
        """
        weights: dict[str, Tensor] = dict(self.network.named_parameters())
        place = None if batch.images.dim() == 4 else 0
        logits, losses = vmap(self._of_one, in_dims=(0, place, place))(weights, batch.images, batch.labels)
        if self._balancing is not None:
            self._balancing.wrong = (logits.detach().argmax(-1) != batch.labels).double()
        self.losses = losses.detach()
        return losses.sum()

    def _of_one(self, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(self.network, weights, (images,))
        return logits, self._objective.loss(nn.Identity(), Batch(logits, labels, labels, 0))


@dataclass(eq=False)
class _Balancing:
    """How the layers of all models are balanced: beta and epsilon have the shape (models, 1), wrong (models, N)."""

    beta: Tensor
    epsilon: Tensor
    misclassified: float
    bias: bool
    wrong: Tensor | None = None  # which samples the last forward pass got wrong

    def rates(self, gradient: Float[Tensor, "models n ..."]) -> Float[Tensor, "models n"]:
        """beta eta_i, the maximum taken within each model."""
        norms = sample_norms(gradient.flatten(0, 1)).unflatten(0, gradient.shape[:2])
        epsilon = self.epsilon
        if self.misclassified != 1 and self.wrong is not None:
            epsilon = epsilon * (1 + (self.misclassified - 1) * self.wrong)
        return self.beta * rates(norms, 1.0, epsilon, norms.amax(1, keepdim=True))


@dataclass(eq=False)
class _Pass:
    """One pass through one layer: on the way back its end tells its beginning the rates."""

    rates: Tensor | None = None


class _In(torch.autograd.Function):
    """In front of the layer: an identity whose backward divides by the rates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passing: _Pass) -> Tensor:
        ctx.passing = passing
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _scaled(gradient, ctx.passing.rates.reciprocal()), None


class _Out(torch.autograd.Function):
    """Behind the layer: an identity whose backward multiplies by the rates."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, passing: _Pass, balancing: _Balancing) -> Tensor:
        ctx.passing, ctx.balancing = passing, balancing
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.passing.rates = ctx.balancing.rates(gradient)
        return _scaled(gradient, ctx.passing.rates), None, None


class _OnStack(torch.autograd.Function):
    """Under vmap a layer sees the tensor of one model; this hands a function that of all, shape (models, N, …).

    A tensor that all models share, as images before the first layer, comes as that of a single model.
    """

    @staticmethod
    def forward(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x[None])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass  # nothing flows back here: autograd follows the function itself, and shared tensors need no gradient

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, function: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        return function(x.movedim(in_dims[0], 0)), 0


def _understood(methods: Sequence[Method], device: torch.device) -> tuple[Plain, _Balancing | None]:
    """The objective of all models, and how their layers are balanced, if they are."""
    bangs = [method for method in methods if isinstance(method, Bang)]
    plain = bangs[0].inside if bangs else methods[0]
    for method in methods:
        known: Method = plain
        if bangs and isinstance(method, Bang):
            known = Bang(method.beta, method.epsilon, bangs[0].misclassified, bangs[0].bias, inside=plain)
        # rebuilt from what is computed here: any other setting would go unheard
        if not isinstance(plain, Plain) or method != known or len(bangs) not in (0, len(methods)):
            raise UsageError(
                "only plain training, and BANG around it with beta and epsilon that stay as they are, can be computed "
                f"for several models at once, not {method}; train these models one by one"
            )
    assert isinstance(plain, Plain)
    if not bangs:
        return plain, None
    for name in ("beta", "epsilon"):
        for value in (getattr(method, name) for method in bangs):
            if isinstance(value, dict) or (name == "beta" and value == 0):
                raise UsageError(
                    f"models computed at once need one {name} for all layers{', above 0' if name == 'beta' else ''}, "
                    f"found {value}; train this model by itself"
                )
    beta, epsilon = (
        torch.tensor([[getattr(method, name)] for method in bangs], dtype=torch.float64, device=device)
        for name in ("beta", "epsilon")
    )
    return plain, _Balancing(beta, epsilon, bangs[0].misclassified, bangs[0].bias)


def _adapt(name: str, module: nn.Module, balancing: _Balancing | None, generators: Sequence[torch.Generator]) -> None:
    """Give a layer of the shared network the forward pass that it needs for several models."""
    if next(module.children(), None) is not None:
        return
    if type(module) not in LAYERS:
        raise UsageError(
            f"{name} is a {type(module).__name__}, which cannot be computed for several models at once; "
            "train these models one by one"
        )
    layer: Any = module
    if isinstance(module, nn.Dropout):
        layer.forward = partial(_dropped, name, module, generators)
    elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        layer.forward = partial(_pooled, type(module).forward, module)
    elif isinstance(module, nn.ReLU):
        layer.inplace = False  # what comes in may be a view of the stack
    elif isinstance(module, nn.Linear | nn.Conv2d):
        layer.forward = partial(_balanced, module, balancing) if balancing else partial(_linear, module)


def _balanced(layer: Any, balancing: _Balancing, x: Tensor) -> Tensor:
    """A layer between its two identities."""
    passing = _Pass()
    x = _OnStack.apply(x, lambda stacked: _In.apply(stacked, passing))
    y = _linear(layer, x, with_bias=balancing.bias)
    y = _OnStack.apply(y, lambda stacked: _Out.apply(stacked, passing, balancing))
    if balancing.bias or layer.bias is None:
        return y
    return y + layer.bias.view(-1, *[1] * (y.dim() - 2))


def _linear(layer: Any, x: Tensor, with_bias: bool = True) -> Tensor:
    bias = layer.bias if with_bias else None
    if isinstance(layer, nn.Linear):
        return functional.linear(x, layer.weight, bias)
    ungrouped = layer.groups == 1 and layer.dilation == (1, 1)
    if layer.weight.is_cuda and ungrouped and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return products(layer, x, bias)
    return layer._conv_forward(x, layer.weight, bias)


def products(layer: Any, x: Float[Tensor, "n c h w"], bias: Tensor | None) -> Float[Tensor, "n k h w"]:
    """A convolution without groups or dilation, written as one matrix product over all places.

    vmap makes one with as many groups as models of what is written as a convolution, and GPU libraries are not made for
    groups of 20 channels, but for batches of matrix products. On CPUs it is the other way round.
    """
    height, width = layer.padding
    padded = functional.pad(x, (width, width, height, height)) if height or width else x
    # `functional.unfold` does the same, but on a GPU starts anew for each image
    (high, wide), (down, right) = layer.kernel_size, layer.stride
    patches = padded.unfold(2, high, down).unfold(3, wide, right).permute(1, 4, 5, 0, 2, 3)
    y = layer.weight.flatten(1) @ patches.flatten(3).flatten(0, 2)
    y = y.unflatten(1, patches.shape[3:]).transpose(0, 1)
    return y if bias is None else y + bias[:, None, None]


def _pooled(forward: Callable[[Any, Tensor], Tensor], layer: nn.Module, x: Tensor) -> Tensor:
    """A pooling layer, the models lying side by side as channels.

    That is how a convolution leaves them; CPUs pool channels that lie last several times as fast.
    """

    def pooled(stacked: Tensor) -> Tensor:
        side_by_side = stacked.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        return forward(layer, side_by_side).unflatten(1, (len(stacked), -1)).transpose(0, 1)

    return forward(layer, x) if x.is_cuda else _OnStack.apply(x, pooled)


def _dropped(name: str, layer: nn.Dropout, generators: Sequence[torch.Generator], x: Tensor) -> Tensor:
    """What `nn.Dropout` computes, each model's mask drawn from its own generator."""

    def masked(stacked: Tensor) -> Tensor:
        if len(stacked) != len(generators):
            raise UsageError(f"{name} is a dropout layer on what all models share; train these models one by one")
        keep = torch.empty(stacked.shape, dtype=stacked.dtype, device=stacked.device)
        for mask, generator in zip(keep, generators, strict=True):
            mask.bernoulli_(1 - layer.p, generator=generator)
        return stacked * keep.div_(1 - layer.p)

    return _OnStack.apply(x, masked) if layer.training and layer.p > 0 else x


def _scaled(gradient: Tensor, factors: Float[Tensor, "models n"]) -> Tensor:
    """Each sample's gradient times its own factor."""
    return gradient * factors.to(gradient.dtype).view(*factors.shape, *[1] * (gradient.dim() - 2))
