"""How far training has stalled: which samples still move the weights, layer by layer.

A sample that is classified correctly soon has a small loss gradient beside those of misclassified ones, hardly moves
the weights any more, and its surroundings are never flattened; Rozsa, Günther and Boult call that evolutionary stalling
("Towards Robust Deep Neural Networks with BANG", 2018, arXiv:1612.00138, sections 1 and 3.1). What is measured is how
much each sample counts in a layer's weight gradient, before and after their balancing (`bessemer.layers.balance`):

    c_i = |kappa_i|      and      c_i = beta eta_i |kappa_i|,      kappa_i = dE / dy_i at the layer's output

What counts is the length of the gradient at the layer's output, as in their equations, not that of the sample's weight
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bessemer import data, processes, randomness
from bessemer.data import Batch, Split
from bessemer.errors import UsageError
from bessemer.layers.adaptive import epsilon_for
from bessemer.layers.balance import LINEAR_LAYERS, rates, sample_norms
from bessemer.records import stalling as record
from bessemer.records.movement import named
from bessemer.training.methods import Bang, Method, Plain
from bessemer.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> the mean over the batch

PROBE = 500  # so many training images
DIGITS = 4  # of what is noted, significant ones


@dataclass(frozen=True, eq=False)
class Contributions:
    """How much each sample counts in a layer's weight gradient. sizes: c_i, float64; correct: is it classified so?"""

    sizes: Float[Tensor, " n"]
    correct: Bool[Tensor, " n"]

    @property
    def correct_share(self) -> float:
        """What of the sum of all comes from correctly classified samples; NaN where the sum is zero."""
        return float(self.sizes[self.correct].sum() / self.sizes.sum())

    @property
    def effective_share(self) -> float:
        """The effective number of contributing samples, (sum c)^2 / sum c^2, as a share of all.

        1 where all count alike, 1 / n where one makes the whole update; NaN where no sample has a gradient.
        """
        c = self.sizes
        return float(c.sum().square() / c.square().sum() / len(c))


@dataclass(frozen=True, eq=False)
class LayerStalling:
    """One layer. before: without balancing; after: with it, None where the layer is not balanced."""

    before: Contributions
    after: Contributions | None

    @property
    def zero_share(self) -> float:
        """The share of samples whose gradient is exactly zero at this layer."""
        return float((self.before.sizes == 0).double().mean())

    def log_norms(self, quantiles: Sequence[float] = record.QUANTILES) -> list[float]:
        """Quantiles of log10(|kappa_i| / max_j |kappa_j|) over the samples with a gradient; NaN where none has one."""
        felt = self.before.sizes[self.before.sizes > 0]
        return _quantiles(felt.log10() - felt.log10().max() if len(felt) else felt, quantiles)


@dataclass(frozen=True, eq=False)
class Stalling:
    """What `stalling` found; tensors on the CPU, one entry a sample.

    correct: is it classified correctly; gap: what lies between its two largest logits. layers: by name, in the order of
    the model's modules.
    """

    correct: Bool[Tensor, " n"]
    gap: Float[Tensor, " n"]
    layers: dict[str, LayerStalling]

    @property
    def accuracy(self) -> float:
        """The share of correctly classified samples: what `correct_share` would be if all counted alike."""
        return float(self.correct.double().mean())

    def gaps(self, quantiles: Sequence[float] = record.QUANTILES) -> list[float]:
        """Quantiles of the logit gap of correctly classified samples; NaN where there is none."""
        return _quantiles(self.gap[self.correct], quantiles)

    def numbers(self) -> dict[str, float]:
        """All of it under the names of `bessemer.records.stalling`; what is no number is left out."""
        found = {record.IMAGES: float(len(self.correct)), record.ACCURACY: self.accuracy}
        found |= _at_quantiles(record.GAP, self.gaps())
        for name, layer in self.layers.items():
            measured = {
                record.CORRECT: layer.before.correct_share,
                record.EFFECTIVE: layer.before.effective_share,
                record.ZERO: layer.zero_share,
                **_at_quantiles(record.NORM, layer.log_norms()),
            }
            if layer.after is not None:
                measured[record.CORRECT_BALANCED] = layer.after.correct_share
                measured[record.EFFECTIVE_BALANCED] = layer.after.effective_share
            found |= {named(measure, name): value for measure, value in measured.items()}
        return {name: float(f"{value:.{DIGITS}g}") for name, value in found.items() if math.isfinite(value)}


def stalling(
    model: nn.Module,
    images: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    *,
    beta: float | Mapping[str, float] = 0.0,
    epsilon: float | Mapping[str, float] = 0.815,
    misclassified: float = 1.0,
    contributing: float = 0.0,
    batch_size: int | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Stalling:
    """How much each of some images counts in the weight gradient of every linear and convolution layer of a classifier.

    The model is asked in the mode it is in: in training mode (batch statistics, dropout) as an update sees it. It comes
    back exactly as it was: weights, gradients, buffers such as running statistics, modes, torch's random state. A
    balanced model gives the gradients before balancing.

    beta, epsilon, misclassified, contributing: the balancing to compare with, as `bessemer.layers.balance` takes it;
    with beta = 0, as for regular training, there is no `after`, and a layer with a frozen weight has none. The rates
    are those of one batch of all the images. batch_size: of the passes, where memory is short; batch norm sees about so
    many images at a time, and each sample's gradient is that of a mean over so many, as in training. loss: of logits
    and labels, the mean over the batch. seed: of dropout's masks.

    A layer that is called several times in a pass counts with all its outputs together: |kappa_i| is the length of its
    gradients at all of them, each call balanced by itself, as `balance` does. Left out are layers that the loss does
    not reach, and calls whose output does not hold one row for each image.
    Gradients are computed in the model's own precision, so that what underflows in training does so here; their norms
    in float64.
    Raises `UsageError` where there are no images, or the model does not return logits of at least two classes.
    """
    if not len(images):
        raise UsageError("stalling needs images, and there are none")
    size = min(batch_size or len(images), len(images))
    count = math.ceil(len(images) / size)
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, LINEAR_LAYERS)
    }
    with _given_back(model, images.device, seed):
        passes = [
            _pass(model, layers, *part, loss, size)
            for part in zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        ]
    logits = torch.cat([part.logits for part in passes]).cpu()
    correct = logits.argmax(1) == labels.cpu()
    factor = torch.where(correct, 1.0, misclassified).double()
    first, second = logits.topk(2, dim=1).values.unbind(1)
    found: dict[str, LayerStalling] = {}
    for name in passes[0].norms:
        if len({len(part.norms.get(name, [])) for part in passes}) > 1:
            continue  # called more often for some images than for others
        calls = torch.cat([torch.stack(part.norms[name]) for part in passes], dim=1).cpu()
        after = None
        weight: Any = layers[name].weight
        if (layer_beta := _of_layer(beta, name)) and weight.requires_grad:
            scaled = []
            for norms in calls:
                chosen = _of_layer(epsilon, name) * factor
                if contributing:
                    chosen = epsilon_for(contributing, norms, chosen)
                scaled.append(norms * rates(norms, layer_beta, chosen))
            after = Contributions(_length(torch.stack(scaled)), correct)
        found[name or "model"] = LayerStalling(Contributions(_length(calls), correct), after)
    return Stalling(correct, first - second, found)


def stalling_of(recipe: Recipe, data_dir: Path | None = None) -> Callable[[nn.Module], dict[str, float]]:
    """What to note of a model while `training.train` trains it by a recipe: `stalling` on a fixed probe, as numbers.

    The probe is the first 500 training images in a random order of its own, without augmentation, and without attack
    also where training is adversarial; the loss is the recipe's own. It is passed through in parts as large as those of
    training, which fit into memory. The data set is loaded when first asked.
    """
    methods = _inwards(recipe.method)
    bang = next((method for method in methods if isinstance(method, Bang)), None)
    balancing: dict[str, Any] = {}
    if bang is not None:
        balancing = {name: getattr(bang, name) for name in ("beta", "epsilon", "misclassified", "contributing")}

    @cache
    def probe() -> Split:
        train = data.load(recipe.data[0], data_dir, **recipe.data[1]).train
        generator = torch.Generator().manual_seed(randomness.subseed(recipe.seed, 3))
        index = torch.randperm(len(train), generator=generator)[:PROBE]
        return Split(train.images[index], train.labels[index])

    def note(model: nn.Module) -> dict[str, float]:
        split = probe().to(next(model.parameters()).device)
        images, labels = split.at(slice(None))
        plan, loss = recipe.training, _loss(methods[-1])
        size = plan.batch_size // (processes.place()[1] * plan.accumulation)
        return stalling(model, images, labels, **balancing, batch_size=size, loss=loss, seed=recipe.seed).numbers()

    return note


def _inwards(method: Method) -> list[Method]:
    """A method, the one inside it, and so on."""
    inside = getattr(method, "inside", None)
    return [method, *_inwards(inside)] if isinstance(inside, Method) else [method]


def _loss(method: Method) -> Loss:
    """The loss of logits by the method that computes it."""
    if not isinstance(method, Plain):
        return cross_entropy

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        index = torch.arange(len(labels), device=labels.device)
        return method.loss(nn.Identity(), Batch(logits, labels, index, seed=0))

    return loss


@dataclass
class _Pass:
    """One forward and backward pass. norms: of each sample's gradient at the output, by layer, a row a call."""

    logits: Tensor
    norms: dict[str, list[Tensor]]


@dataclass
class _Listener:
    """A hook on one layer: has the gradient at each of its outputs measured when it comes.

    leaves: where the graph begins, since neither weights nor images ask for a gradient.
    """

    batch: int
    leaves: list[Tensor]
    found: list[list[Tensor]] = field(default_factory=list)  # a call each, empty until its gradient has come

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled() or output.dim() < 2 or len(output) != self.batch:
            return None
        if not output.requires_grad:
            leaf = output.detach().requires_grad_()
            self.leaves.append(leaf)
            output = leaf.clone()  # an in-place ReLU may follow, and autograd forbids that on a leaf
        norms: list[Tensor] = []
        self.found.append(norms)

        def measure(gradient: Tensor) -> None:
            exact = gradient.dtype in (torch.float32, torch.float64)
            norms.append(sample_norms(gradient if exact else gradient.float()))

        output.register_hook(measure)
        return output


def _pass(
    model: nn.Module, layers: dict[str, nn.Module], images: Tensor, labels: Tensor, loss: Loss, size: int
) -> _Pass:
    """The gradients of some images, each as in a mean over `size` of them."""
    leaves: list[Tensor] = []
    listeners = {name: _Listener(len(images), leaves) for name in layers}
    hooks = [layer.register_forward_hook(listeners[name]) for name, layer in layers.items()]
    # the model's own tensors are neither written to nor part of the graph
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        logits = functional_call(model, (weights, buffers), (images,))
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"stalling needs a classifier that returns logits of shape (N, classes), found {found}")
    value = loss(logits, labels) * (len(images) / size)
    if leaves and value.requires_grad:
        torch.autograd.grad(value, leaves, allow_unused=True)
    reached = {name: [norms[0] for norms in each.found if norms] for name, each in listeners.items()}
    return _Pass(logits.detach(), {name: norms for name, norms in reached.items() if norms})


@contextmanager
def _given_back(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers from `seed` inside, with gradients; afterwards they and the modules' modes are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    cuda = {tensor.device for tensor in (*model.parameters(), *model.buffers())} | {device}
    cuda = {place for place in cuda if place.type == "cuda"}
    with torch.random.fork_rng(devices=list(cuda)), torch.enable_grad():
        # `torch.manual_seed` would reach every other GPU too
        torch.default_generator.manual_seed(own := randomness.subseed(seed, 4))
        for place in cuda:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(own)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _of_layer(setting: float | Mapping[str, float], name: str) -> float:
    """A setting of `balance` for one layer: the first pattern that matches its name counts."""
    if not isinstance(setting, Mapping):
        return setting
    return next((value for pattern, value in setting.items() if fnmatchcase(name, pattern)), 0.0)


def _length(calls: Float[Tensor, "calls n"]) -> Float[Tensor, " n"]:
    return calls[0] if len(calls) == 1 else torch.linalg.vector_norm(calls, dim=0)


def _quantiles(values: Tensor, quantiles: Sequence[float]) -> list[float]:
    if not len(values):
        return [math.nan] * len(quantiles)
    return torch.quantile(values.double(), torch.tensor(quantiles, dtype=torch.float64)).tolist()


def _at_quantiles(measure: str, values: list[float]) -> dict[str, float]:
    names = [record.at_quantile(measure, quantile) for quantile in record.QUANTILES]
    return dict(zip(names, values, strict=True))
