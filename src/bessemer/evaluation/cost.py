"""What an evaluation will cost at most, and how many images fit into a time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from bessemer.attacks import borrowed
from bessemer.attacks.attack import Model
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import cross_entropy
from bessemer.errors import UsageError
from bessemer.evaluation.suites import Suite

REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Seconds per image of the passes alone, if no image falls early, measured on this machine now."""

    forward: float
    backward: float
    per_image: float

    def images_within(self, seconds: float) -> int:
        """How many images surely fit. Raises `UsageError` where none does."""
        count = int(seconds / self.per_image) if self.per_image else 0
        if not count:
            raise UsageError(
                f"one image may take {self.per_image:.1f} s, more than the budget; allow more, or take a smaller suite"
            )
        return count


def estimate(model: Model, suite: Suite, images: Tensor, labels: Tensor, through: Model | None = None) -> Cost:
    """Time passes over a batch, and multiply with what each attack of the suite asks for at most."""
    asked = through or model
    forwards, backwards = [], []
    with torch.enable_grad(), borrowed(model, images.device, 0):
        for _ in range(REPEATS):
            began = _now(images)
            with torch.no_grad():
                logits = asked(images)
            between = _now(images)
            x = images.detach().clone().requires_grad_()
            values = cross_entropy(Goal(labels), asked(x))
            if values.requires_grad:
                torch.autograd.grad(values.sum(), x, allow_unused=True)
            forwards.append(between - began)
            backwards.append(_now(images) - between - (between - began))
    # the quickest of several: whatever else the machine does can only make it slower
    forward, backward = (max(0.0, min(times)) / len(images) for times in (forwards, backwards))
    passes = [attack.passes(logits.shape[1]) for attack in suite.attacks.values()]
    total = sum(f * forward + b * backward for f, b in passes)
    return Cost(forward, backward, total + 3 * forward)


def _now(images: Tensor) -> float:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter()
