"""A step of adversarial training over the bare passes: k for the pixels, and one training step.

    python benchmarks/adversarial_step.py

The bare loop is what a user of plain PyTorch writes: a random start, k times the gradient at the pixels, a step and the
projection, in evaluation mode, then a training step on the last point; in float32 and the default layout. Bessemer's
step is `Update` with `Adversarial(PGD(...))` on a batch that is there already: the same arithmetic with `last=True`
(target 1.05); with the default, which asks about the last point too and returns the worst (one forward pass more: a
part that shrinks with k); and the fast mode, bfloat16 and channels last (target 0.5). The attack gives buffers back
untouched, checks its images once and looks for NaN; none of it can be told from noise. Folding batch norms for the
attack was tried: it spares a seventh of a pass on ResNet-8, a twentieth on the PreAct-ResNet (norms that stand before a
ReLU cannot be folded) and nothing on CIFAR-quick, for folded weights to be made at every step; it was left out. So was
`torch.compile`, which spares a twentieth. Pairs are interleaved and the ratio is the median of theirs, but what runs
beside still shows: measure on a quiet machine.
Writes results/benchmarks-adversarial-step.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.allocation import keep_freed_memory
from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.models import CifarQuick, PreActResNet, ResNet
from bessemer.records import provenance, write_whole
from bessemer.threat import Linf
from bessemer.training import SGD, Adversarial
from bessemer.training.update import Update
from timing import ratios

EPS, BATCH = 8 / 255, 100
STEPS = (1, 5, 10)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CIFAR-quick": CifarQuick,
    "ResNet-8": partial(ResNet, depth=8),
    "PreAct-ResNet-18, width 16": partial(PreActResNet, depth=18, width=16),
}


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Nothing but the passes, the steps, the projection and the update."""
    model.eval()
    x = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
        x = x.detach() + 2.5 * EPS / steps * gradient.sign()
        x = torch.min(torch.max(x, images - EPS), images + EPS).clamp(0, 1)
    model.train()
    optimizer.zero_grad()
    loss = cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def ours(model: nn.Module, precision: str, last: bool, steps: int) -> Update:
    """The same step by Bessemer."""
    method = Adversarial(PGD(Linf(EPS), steps=steps, last=last))
    return Update(model.train(), method, SGD(model.parameters(), 1e-4, 0.9, 5e-4), precision)


def measure(names: list[str]) -> dict[str, dict]:
    """Ratios by network, number of steps and kind of training."""
    found: dict[str, dict] = {}
    for name in names or NETWORKS:
        torch.manual_seed(0)
        model = NETWORKS[name]()
        images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=5e-4)
        batch = Batch(images, labels, torch.arange(BATCH), seed=0)
        for steps in STEPS:
            laid_out = deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            kinds = {
                "last point": ours(deepcopy(model), "float32", True, steps),
                "worst point": ours(deepcopy(model), "float32", False, steps),
                "last point, bfloat16, channels last": ours(laid_out, "bfloat16", True, steps),
            }
            found |= ratios(
                {f"PGD-{steps} training, {name}: {kind}": partial(update, batch) for kind, update in kinds.items()},
                partial(bare, model, optimizer, images, labels, steps),
                pairs=max(3, 30 // (steps + 1)),
            )
    return found


def main(names: list[str]) -> None:
    """Measure, print, write."""
    torch.set_flush_denormal(True)
    keep_freed_memory()  # as the command line does
    began = time.monotonic()
    found = measure(names)
    for name, row in found.items():
        print(f"{row['ratio']:6.3f}  {row['quartiles']}  {name}  ({row['seconds']} s / {row['base_seconds']} s)")
    if names:  # a part of the table is to be looked at, not kept
        return
    facts = {
        "batch": BATCH,
        "ratios": found,
        "provenance": provenance(threads=torch.get_num_threads(), seconds=round(time.monotonic() - began, 1)),
    }
    path = Path(__file__).parents[1] / "results" / "benchmarks-adversarial-step.json"
    write_whole(path, json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
