"""A cheaper copy of a model to search with: batch norm folded into convolutions, channels last, bfloat16.

Nothing it says counts: a success is believed only after the model itself, untouched and in float32, confirms it, so
that robust accuracy can only come out too high, and by little (`benchmarks/` measures how little).
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
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
        folded = _folded(copy)
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


def _folded(copy: nn.Module) -> nn.Module | None:
    """Batch norm folded into the convolutions right before it; None where the model cannot be traced."""
    try:
        traced = fx.symbolic_trace(copy)
    except Exception:  # tracing runs the model's own code, which may fail in any way; it is then left as it is
        return None
    parts = dict(traced.named_modules())
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for norm in calls:
        before = norm.args[0] if norm.args else None
        if not isinstance(parts[norm.target], _BatchNorm) or not isinstance(before, fx.Node):
            continue
        if before.op != "call_module" or len(before.users) != 1:
            continue
        convolution = parts[str(before.target)]
        if isinstance(convolution, CONVOLUTIONS) and times[norm.target] == times[before.target] == 1:
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, parts[norm.target]))
            norm.replace_all_uses_with(before)
            traced.graph.erase_node(norm)
    traced.recompile()
    return traced
