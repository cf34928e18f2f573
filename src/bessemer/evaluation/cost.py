"""What an evaluation will cost at most, and how many images fit into a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bessemer.attacks import Attack, borrowed
from bessemer.attacks.attack import Model
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import cross_entropy
from bessemer.errors import UsageError
from bessemer.evaluation.judge import radii
from bessemer.evaluation.suites import Suite

REPEATS = 5
CURVE_IMAGES = 500  # that are followed over the radius at most


@dataclass(frozen=True)
class Cost:
    """Seconds per image of the passes alone, if no image falls early, measured on this machine now.

    curve: what following each of the first images over the radius takes besides.
    """

    forward: float
    backward: float
    per_image: float
    curve: float = 0.0

    def of(self, images: int) -> float:
        """Seconds for so many images."""
        return images * self.per_image + min(images, CURVE_IMAGES) * self.curve

    def images_within(self, seconds: float) -> int:
        """How many images surely fit. Raises `UsageError` where none does."""
        count = int(seconds / max(self.per_image + self.curve, 1e-9))
        if count > CURVE_IMAGES:
            count = int((seconds - CURVE_IMAGES * self.curve) / max(self.per_image, 1e-9))
        if not count:
            raise UsageError(
                f"one image may take {self.of(1):.2g} s, more than the budget; allow more, or take a smaller suite"
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

    def seconds(attack: Attack) -> float:
        forwards, backwards = attack.passes(logits.shape[1])
        return forwards * forward + backwards * backward

    followed: list[Any] = [suite.attacks[name] for name in suite.curve]
    wider = sum(eps > 0 for eps in radii(followed[0].threat)) if followed else 0
    return Cost(
        forward,
        backward,
        per_image=sum(map(seconds, suite.attacks.values())) + 3 * forward,
        curve=wider * sum(seconds(attack) + forward for attack in followed),
    )


def _now(images: Tensor) -> float:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter()
