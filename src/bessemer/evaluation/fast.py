"""A cheaper copy of a model to search with: batch norm folded into convolutions, channels last, bfloat16.

Nothing it says counts: a success is believed only after the model itself, untouched and in float32, confirms it, so
that robust accuracy can only come out too high, and by little (`benchmarks/` measures how little).
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bessemer.attacks import borrowed
from bessemer.attacks.attack import Model
from bessemer.errors import ModelError

AGREEMENT = 0.9  # of predictions; a search through a copy that agrees less is a search of another model
FOLDED = 1e-3  # of the largest logit
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def cheaper(model: Model, images: Tensor) -> tuple[Model, str]:
    """A copy that answers in about half the time, and what was done to make it.

    images: a few to compare the copy's answers on. Raises `ModelError` where the model is no `nn.Module`, cannot be
    copied, or answers too differently in bfloat16.
    """
    if not isinstance(model, nn.Module):
        raise ModelError("the fast mode works on a copy of an nn.Module, and the model is a plain callable")
    try:
        copy = deepcopy(model).eval().requires_grad_(False)
    except Exception as problem:  # whatever the model holds: a lock, a file, a part of a graph
        raise ModelError(f"the fast mode needs a copy of the model, which cannot be made: {problem}") from problem
    with torch.no_grad(), borrowed(model, images.device, 0):
        expected = model(images)
        folded = _folded(deepcopy(copy), images)
        done = ["bfloat16"]
        if folded is not None and (folded(images) - expected).abs().max() <= FOLDED * expected.abs().max():
            copy, done = folded, ["batch norm folded", *done]
        if images.dim() == 4:
            copy, done = copy.to(memory_format=torch.channels_last), ["channels last", *done]  # type: ignore[call-overload]
        try:
            answers = _in_bfloat16(copy)(images)
        except Exception as problem:  # the model's own code, which nobody has asked in bfloat16 before
            raise ModelError(f"the model fails in bfloat16 ({problem}); use the exact mode") from problem
        agreement = (answers.argmax(1) == expected.argmax(1)).float().mean().item()
    if agreement < AGREEMENT:
        raise ModelError(
            f"in bfloat16 the model gives only {100 * agreement:.0f} % of images the same class; use the exact mode"
        )
    return _in_bfloat16(copy), ", ".join(done)


def _in_bfloat16(copy: nn.Module) -> Model:
    def answer(images: Tensor) -> Tensor:
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = copy(images)
        return logits.float()

    return answer


def _folded(copy: nn.Module, images: Tensor) -> nn.Module | None:
    """Batch norm folded into the convolutions right before it; None where there is nothing to fold.

    Which convolution stands right before which norm, and that nothing else uses what it gives, is seen in a pass.
    """
    names = {module: name for name, module in copy.named_modules(remove_duplicate=False)}
    gave: dict[int, tuple[Tensor, Any]] = {}  # the tensors are kept, so that no other gets their number
    calls: Counter[nn.Module] = Counter()
    before: dict[Any, tuple[Tensor, Any]] = {}

    def after_convolution(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        gave[id(output)] = output, module

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if inputs and id(inputs[0]) in gave:
            before[module] = gave[id(inputs[0])]

    hooks = [part.register_forward_hook(after_convolution) for part in names if isinstance(part, CONVOLUTIONS)]
    hooks += [part.register_forward_pre_hook(before_norm) for part in names if isinstance(part, _BatchNorm)]
    try:
        with torch.enable_grad():
            uses = _uses(copy(images.detach().requires_grad_()))
    finally:
        for hook in hooks:
            hook.remove()
    folded = False
    for norm, (output, convolution) in before.items():
        if calls[norm] == calls[convolution] == 1 and uses[output.grad_fn] == 1 and _plain(convolution, norm):
            copy.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
            copy.set_submodule(names[norm], nn.Identity())
            folded = True
    return copy if folded else None


def _plain(convolution: nn.Module, norm: _BatchNorm) -> bool:
    """Whether the weight is the convolution's own, not made anew in each pass, and the norm has running statistics."""
    own = not parametrize.is_parametrized(convolution) and not convolution._forward_pre_hooks
    return own and norm.running_mean is not None


def _uses(logits: Tensor) -> Counter[Any]:
    """By how many others each node of the graph behind some logits is used."""
    counted: Counter[Any] = Counter()
    ahead, seen = [logits.grad_fn], {logits.grad_fn}
    while ahead:
        for node, _ in getattr(ahead.pop(), "next_functions", ()):
            counted[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                ahead.append(node)
    return counted
