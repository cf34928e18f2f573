"""Gradient balancing: BANG on any model that treats the samples of a batch independently.

Regular training stalls: a sample that is classified correctly soon contributes next to nothing to the weight update,
and its surroundings are never flattened. BANG (Rozsa, Günther and Boult, "Towards Robust Deep Neural Networks with
BANG", 2018, arXiv:1612.00138) evens out how much each sample of a batch counts in each layer's weight gradient, and
leaves the gradient that flows on to lower layers as it is (equations 2 to 6):

    kappa_i = dE_i / dy_i                   the loss gradient of sample i at the layer's output
    r_i     = |kappa_i| / max_j |kappa_j|
    eta_i   = (1 / r_i) ** (epsilon (1 - r_i))
    dE/dw   = beta / N  sum_i  eta_i dE_i/dw

No layer is rewritten for this. An identity behind the layer multiplies each sample's gradient by beta eta_i, so that
the layer's own backward computes the balanced weight gradient; an identity in front of it divides by the same rate, so
that what flows on is the original gradient (up to rounding). Every backward is linear in what comes down, so this
works for any layer whose output for sample i depends on nothing but its input i. The rates travel from one identity to
the other as the gradient of a token, not through Python state: that survives `torch.compile`, re-used modules and
nested calls. Where nothing flows on, at a network's first layer, the input is scaled instead, which is smaller.

Epsilon and beta may also follow from each batch instead of being fixed: `bessemer.layers.adaptive`.

Left out on purpose: layers that mix samples (batch norm), and `nn.MultiheadAttention`, which never calls its own inner
linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed, nn
from torch.nn import functional

from bessemer import processes
from bessemer.errors import BalanceError
from bessemer.layers.adaptive import epsilon_for, norm_keeping

LINEAR_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
LARGEST_RATE = 1e37  # its reciprocal is a normal number in float32
LARGEST_INPUT_RATE = 1e34  # an input times this is one; what would be raised further is all but zero


def rates(
    norms: Float[Tensor, " n"],
    beta: float,
    epsilon: float | Float[Tensor, " n"],
    largest: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " n"]:
    """How much each sample's part of one layer's weight gradient is scaled: beta eta_i (equations 3 and 4).

    The largest stays as it is, small ones are raised to about r ** (1 - epsilon) of it. A sample without gradient adds
    nothing whatever its rate; 1 keeps 0/0 out of the way back. largest: the largest norm of a batch of which `norms`
    are only a part.
    """
    r = norms / (norms.max() if largest is None else largest)
    eta = r ** (epsilon * (r - 1))
    return (beta * eta).clamp(max=LARGEST_RATE).where(norms > 0, 1.0)


def sample_norms(gradient: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """The length of each sample's gradient, in float64.

    BANG's gradients reach 1e-36, and the square of 1e-23 is already zero in float32.
    """
    dimensions = tuple(range(1, gradient.dim()))
    if gradient.is_cuda or torch.compiler.is_compiling():
        return torch.linalg.vector_norm(gradient, dim=dimensions, dtype=torch.float64)
    # a CPU is three times as fast in float32, and need not wait to see for which samples that is too coarse
    norms = torch.linalg.vector_norm(gradient, dim=dimensions).double()
    tiny = norms < 1e-15
    if tiny.any():
        norms[tiny] = torch.linalg.vector_norm(gradient[tiny], dim=dimensions, dtype=torch.float64)
    return norms


@dataclass(eq=False)
class _Shared:
    """What the balanced layers of one model share during a forward pass."""

    batch: int = -1  # how many samples the model was called with
    probes: list[Tensor] = field(default_factory=list)  # see `report_misclassified`
    group: Any = None  # the processes that share a batch, where there are several


@dataclass(frozen=True)
class _Rule:
    """How one layer is balanced."""

    name: str
    beta: float
    epsilon: float
    misclassified: float
    bias: bool
    contributing: float
    keep_norm: bool

    @property
    def adaptive(self) -> bool:
        return self.contributing > 0 or self.keep_norm

    def adapted(self, norms: Tensor, epsilon: float | Tensor) -> Tensor:
        """The rates of a whole batch where epsilon or beta follow from its norms."""
        if self.contributing > 0:
            epsilon = epsilon_for(self.contributing, norms, epsilon)
        rate = rates(norms, 1.0, epsilon)
        beta = self.beta * norm_keeping(norms, norms * rate) if self.keep_norm else self.beta
        return (beta * rate).clamp(max=LARGEST_RATE)


class _In(torch.autograd.Function):
    """In front of the layer: an identity whose backward divides by the rates that arrive as the token's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x.new_zeros(batch, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, rate: Tensor) -> tuple[Tensor, None]:
        # the reciprocal of a large rate is zero in half precision
        return _scaled(_precise(gradient), rate.reciprocal()).to(gradient.dtype), None


class _Out(torch.autograd.Function):
    """Behind the layer: an identity whose backward multiplies by the rates and hands them to the token.

    `probe` is a second output, all zero, whose *gradient* tells which samples were misclassified.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, token: Tensor, rule: _Rule, group: Any) -> tuple[Tensor, Tensor]:
        ctx.rule, ctx.group = rule, group
        ctx.set_materialize_grads(False)
        # not y itself nor a view of it: an in-place ReLU may follow, and autograd forbids that on a view
        return y.detach(), torch.zeros_like(token)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, wrong: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None or not len(gradient):
            return gradient, None if gradient is None else gradient.new_ones(0, dtype=torch.float64), None, None
        precise = _precise(gradient)
        rate = _rates(ctx.rule, precise, wrong, ctx.group)
        return _scaled(precise, rate).to(gradient.dtype), rate, None, None


class _First(torch.autograd.Function):
    """A layer whose input needs no gradient, as a network's first, with its balanced weight gradient.

    That is linear in the input too, so each sample's input is scaled instead of what comes down: an image is much
    smaller than the channels a convolution makes of it. `probe` as above.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, rule: _Rule, group: Any
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.rule, ctx.group, ctx.biased = layer, rule, group, bias is not None
        ctx.set_materialize_grads(False)
        y = functional.linear(x, weight, bias) if isinstance(layer, nn.Linear) else _convolved(layer, x, weight, bias)
        return y, x.new_zeros(x.shape[0], dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, wrong: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None or not len(gradient):
            return (None,) * 6
        x, weight = ctx.saved_tensors
        layer = ctx.layer
        rate = _rates(ctx.rule, gradient, wrong, ctx.group).clamp(max=LARGEST_INPUT_RATE)
        scaled = _scaled(x, rate)
        if isinstance(layer, nn.Linear):
            own = gradient.flatten(0, -2).T @ scaled.flatten(0, -2)
            sums = gradient.flatten(1, -2).sum(1) if gradient.dim() > 2 else gradient
        else:
            geometry = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding)
            own = torch.ops.aten.convolution_backward(
                gradient, scaled, weight, None, *geometry, layer.groups, (False, True, False)
            )[1]
            sums = gradient.flatten(2).sum(2)
        return None, own, rate.to(sums) @ sums if ctx.biased else None, None, None, None


class _Report(torch.autograd.Function):
    """An identity on the logits whose backward tells every probe which samples are wrong."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wrong: Tensor, *probes: Tensor) -> Tensor:
        ctx.save_for_backward(wrong)
        ctx.probes = len(probes)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (wrong,) = ctx.saved_tensors
        return gradient, None, *[wrong] * ctx.probes


class _Balanced:
    """What a balanced layer is besides its own class; see `_balanced_class`."""

    _balance: _Rule
    _shared: _Shared

    def forward(self, x: Tensor) -> Tensor:
        rule, shared = self._balance, self._shared
        layer: Any = super()
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        if not (self.training and weight.requires_grad and torch.is_grad_enabled()):  # type: ignore[attr-defined]
            return layer.forward(x)
        if x.dim() < 2 or (shared.batch >= 0 and x.shape[0] != shared.batch):
            raise BalanceError(
                f"{rule.name}: its input of shape {tuple(x.shape)} does not hold one row for each of the model's "
                f"{shared.batch} samples, so gradients cannot be balanced per sample there; "
                f"leave it out with beta={{'{rule.name}': 0, '*': {rule.beta:g}}}"
            )
        bias: Tensor | None = self.bias  # type: ignore[attr-defined]
        apart = bias is not None and not rule.bias
        if _by_its_input(self, x, apart):
            y, probe = _First.apply(x, weight, bias, self, rule, shared.group)
        else:
            if x.requires_grad:
                x, token = _In.apply(x, x.shape[0])
            else:  # nothing flows on
                token = x.new_zeros(x.shape[0], dtype=torch.float64)
            y = _without_bias(self, x) if apart else layer.forward(x)
            y, probe = _Out.apply(y, token, rule, shared.group)
        if rule.misclassified != 1:
            if shared.batch < 0:
                raise BalanceError(
                    f"{rule.name} was called by itself, but with a factor for misclassified samples the balanced model "
                    "must be called as a whole"
                )
            shared.probes.append(probe)
        if bias is not None and apart:
            y = y + (bias if isinstance(self, nn.Linear) else bias.view(-1, *[1] * (y.dim() - 2)))
        return y


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _balanced_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a balanced layer: its own, with the two identities around `forward`.

    Exchanging the class keeps what users rely on: `isinstance`, parameter names, `state_dict`, copies of the model.
    """
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Balanced{kind.__name__}", (_Balanced, kind), {"_plain": kind})
    return _CLASSES[kind]


def _by_its_input(layer: Any, x: Tensor, apart: bool) -> bool:
    """Whether `_First` can compute the layer: as its class does, and with all of its settings."""
    if x.requires_grad or apart or torch.is_autocast_enabled(x.device.type):
        return False
    if x.dtype not in (torch.float32, torch.float64) or layer._plain not in LINEAR_LAYERS:
        return False
    return isinstance(layer, nn.Linear) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))


def _without_bias(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, layer.weight)
    if layer.transposed:
        return _convolved(layer, x, layer.weight, None)
    return layer._conv_forward(x, layer.weight, None)


def _convolved(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of any kind, its padding zeros."""
    geometry = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding)
    return torch.convolution(x, weight, bias, *geometry, layer.groups)


class Balance:
    """The handle on a model's balanced layers: `remove()` takes balancing off; also a context manager.

    layers: the names of the balanced layers.
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], shared: _Shared) -> None:
        self.layers = list(layers)
        self._modules = list(layers.values())
        self._hook = model.register_forward_pre_hook(_Arrival(shared))

    def remove(self) -> None:
        """Give the model back as it was; a second call does nothing."""
        self._hook.remove()
        for module in self._modules:
            layer: Any = module
            layer.__class__ = layer._plain
            del layer._balance, layer._shared
        self._modules = []

    def __enter__(self) -> Balance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@dataclass(frozen=True, eq=False)
class _Arrival:
    """A hook on the whole model: a new forward pass begins, with so many samples."""

    shared: _Shared

    def __call__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.shared.batch = inputs[0].shape[0] if inputs and isinstance(inputs[0], Tensor) else -1
        self.shared.probes.clear()


def balance(
    model: nn.Module,
    beta: float | Mapping[str, float] = 1.0,
    epsilon: float | Mapping[str, float] = 0.815,
    misclassified: float = 1.0,
    bias: bool = True,
    contributing: float = 0.0,
    keep_norm: bool = False,
) -> Balance:
    """Balance the gradients of every linear and convolution layer of a model, in place (BANG, equations 2 to 6).

    beta, epsilon: one number for all layers, or a mapping from layer-name patterns (`conv*`, `*`) to numbers; the first
    pattern that matches a name counts. beta = 0, or a name that no pattern of a mapping matches, leaves a layer as it
    is.
    misclassified: a factor on epsilon for samples the current forward pass gets wrong; where it is not 1, the objective
    must pass its logits through `report_misclassified` before its backward pass.
    bias: whether biases are balanced like weights.
    contributing: the share of the batch that is to contribute, in (0, 1]: at every step, each layer takes the smallest
    epsilon with which the effective number of contributing samples reaches it, or where none does the `epsilon` given
    (`bessemer.layers.adaptive`). 0: always the epsilon given.
    keep_norm: multiply beta, at every step and in each layer, so that the weight gradient keeps about the norm it has
    without balancing.

    Only training is touched: in evaluation mode, without gradients, and for frozen weights (inside attacks) the model
    computes what it always did. Returns a handle that takes balancing off again.

    A batch is what one backward pass sees: gradients that are accumulated over several passes are balanced within each,
    not across them.

    Where torch.distributed is initialised, the maximum (with contributing or keep_norm: all norms) is taken over the
    global batch (each process must hold as many samples), in a process group of its own: call `balance` in every
    process.

    Raises `BalanceError` where a layer cannot be balanced, is balanced already, or nothing is there to balance; and, in
    the forward pass, where a layer's rows are not the model's samples.
    """
    if not 0 <= contributing <= 1:
        raise BalanceError(f"contributing is a share of the batch, from 0 (off) to 1, found {contributing:g}")
    layers: dict[str, nn.Module] = {}
    rules: dict[str, _Rule] = {}
    inside_attention: tuple[str, ...] = ()
    for name, module in model.named_modules():
        layer_beta, layer_epsilon = _for_layer(beta, name), _for_layer(epsilon, name)
        if isinstance(module, nn.MultiheadAttention):
            inside_attention += (f"{name}.",)
            if layer_beta and layer_epsilon is not None:
                raise BalanceError(
                    f"{name or 'the model'} is an nn.MultiheadAttention, which never calls its own linear layers, so "
                    f"its gradients cannot be balanced; leave it out with beta={{'{name}*': 0, '*': 1}}"
                )
        if not isinstance(module, LINEAR_LAYERS) or name.startswith(inside_attention):
            continue
        if not layer_beta or layer_epsilon is None:
            continue
        if isinstance(module, _Balanced):
            raise BalanceError(f"{name or 'the model'} is balanced already; call remove() on the first handle")
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise BalanceError(f"{name or 'the model'} has no weights yet; call the model once before balancing it")
        if not bias and type(module).forward not in {kind.forward for kind in LINEAR_LAYERS}:
            raise BalanceError(
                f"{name or 'the model'} is a {type(module).__name__} with a forward pass of its own, so its bias "
                "cannot be left out; balance it with bias=True"
            )
        if layer_beta < 0 or layer_epsilon < 0 or misclassified < 0:
            raise BalanceError(
                f"beta, epsilon and the factor for misclassified samples cannot be negative, "
                f"found {layer_beta}, {layer_epsilon} and {misclassified} for {name}"
            )
        layers[name] = module
        rules[name] = _Rule(name, layer_beta, layer_epsilon, misclassified, bias, contributing, keep_norm)
    if not layers:
        raise BalanceError("nothing to balance: the model has no linear or convolution layer that beta selects")
    # a process group of its own: its maxima must not wait behind other traffic, but do wait for an attack elsewhere
    shared = _Shared(group=distributed.new_group(timeout=processes.PATIENCE) if distributed.is_initialized() else None)
    for name, module in layers.items():
        plain: Any = module
        plain._balance, plain._shared = rules[name], shared
        plain.__class__ = _balanced_class(type(module))
    return Balance(model, layers, shared)


def report_misclassified(
    model: nn.Module, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    """The same logits; on the way back they tell the balanced layers which samples this forward pass got wrong.

    Call it on the logits of the model's last forward pass. It changes nothing where no layer asks for it.
    """
    every = {id(module._shared): module._shared for module in model.modules() if isinstance(module, _Balanced)}
    probes = [probe for shared in every.values() for probe in shared.probes]
    if not probes:
        return logits
    for shared in every.values():
        shared.probes.clear()
    wrong: Bool[Tensor, " n"] = logits.detach().argmax(1) != labels
    return _Report.apply(logits, wrong.double(), *probes)


def _rates(rule: _Rule, gradient: Tensor, wrong: Tensor | None, group: Any) -> Tensor:
    """What each sample is scaled by, from what comes down to a layer's output."""
    norms = sample_norms(gradient)
    epsilon: float | Tensor = rule.epsilon
    if wrong is not None:
        epsilon = epsilon * (1 + (rule.misclassified - 1) * wrong)
    if rule.adaptive:
        return _adapted(rule, norms, epsilon, group)
    largest = None if group is None else _global_maximum(norms, group)
    return rates(norms, rule.beta, epsilon, largest)


def _global_maximum(norms: Tensor, group: Any) -> Tensor:
    """The largest norm over all processes, which must hold equally many samples (else `BalanceError` in each)."""
    count = float(len(norms))
    found = torch.stack([norms.max(), norms.new_tensor(count), norms.new_tensor(-count)])
    distributed.all_reduce(found, distributed.ReduceOp.MAX, group=group)
    if found[1] != -found[2]:
        raise BalanceError(
            f"balancing needs as many samples in each process, but they hold from {-int(found[2])} to {int(found[1])}"
        )
    return found[0]


def _adapted(rule: _Rule, norms: Tensor, epsilon: float | Tensor, group: Any) -> Tensor:
    """This process's part of the rates that follow from the norms of the global batch."""
    if group is None:
        return rule.adapted(norms, epsilon)
    own = torch.stack([norms, torch.zeros_like(norms) + epsilon])
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    rate = rule.adapted(*torch.cat(every, dim=1))
    return rate.view(-1, len(norms))[distributed.get_rank(group)]


def _precise(gradient: Tensor) -> Tensor:
    return gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float()


def _for_layer(setting: float | Mapping[str, float], name: str) -> float | None:
    if not isinstance(setting, Mapping):
        return setting
    return next((value for pattern, value in setting.items() if fnmatchcase(name, pattern)), None)


def _scaled(gradient: Tensor, factors: Tensor) -> Tensor:
    """Each sample's gradient times its own factor."""
    return gradient * factors.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))
