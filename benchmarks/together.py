"""Many models trained as one over the same models one by one, a step of each: `python benchmarks/together.py`.

Below 1 the batched program is the faster. On a GPU also the goal it was written for: the 13 × 13 LeNets of BANG's
Figure 2, 10,000 iterations of batch 64, in under 10 minutes; some hundred steps are timed and the rest is extrapolated.
Writes results/benchmarks-together.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from bessemer.allocation import keep_freed_memory
from bessemer.data import Batch
from bessemer.models import DigitsNet, LeNet, Network
from bessemer.records import provenance, write_whole
from bessemer.training import SGD, Bang, Method, Plain, stack
from timing import ratios, seconds

PATH = Path(__file__).parents[1] / "results" / "benchmarks-together.json"
GRID = [(1 + 0.05 * row, 0.78 + 0.005 * column) for row in range(13) for column in range(13)]  # 169 betas and epsilons
STEPS, GOAL = 10_000, 600  # of the grid: iterations and seconds


def methods(count: int, bang: bool) -> list[Method]:
    """As many as there are models, no two BANGs alike."""
    return [Bang(*GRID[place]) if bang else Plain() for place in range(count)]


def batch(model: Network, device: str) -> Batch:
    """64 images of noise, the same for all models."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((64, *model.image_shape), generator=generator).to(device)
    labels = torch.randint(10, (64,), generator=generator).to(device)
    return Batch(images, labels, torch.arange(64, device=device), 0)


def updates(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One update of a model."""
    optimizer = SGD(model.parameters(), 1e-4, 0.9, 5e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def together(make: Callable[[], Network], count: int, bang: bool, device: str = "cpu") -> Callable[[], None]:
    """A step of all models at once."""
    models = [make().to(device) for _ in range(count)]
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(count)]
    network = stack.Stack(models, methods(count, bang), generators).train()
    images = batch(models[0], device)
    return updates(network, lambda: network.loss(images))


def one_by_one(make: Callable[[], Network], count: int, bang: bool, device: str, held: ExitStack) -> Callable[[], None]:
    """A step of each model, in the layout that `train` gives it."""
    steps = []
    for method in methods(count, bang):
        model = make().to(device, memory_format=torch.channels_last)
        images = batch(model, device)
        model = method.prepare(model, held).train()
        steps.append(updates(model, lambda m=model, b=images, of=method: of.loss(m, b)))

    def every() -> None:
        for step in steps:
            step()

    return every


def settled(step: Callable[[], None], times: int, device: str) -> Callable[[], None]:
    """Some steps, and whatever the device still has to do of them."""

    def run() -> None:
        for _ in range(times):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def compared(device: str) -> dict[str, dict]:
    """Ratios by network, number of models and method."""
    found = {}
    for name, make, times in (("LeNet", LeNet, 16), ("DigitsNet", lambda: DigitsNet(dropout=0.5), 64)):
        for count in (1, 4, 16):
            for bang in (False, True):
                row = f"together / one by one, {device}, {name}, batch 64, {count} x {'BANG' if bang else 'plain'}"
                repeated = max(times // count, 1)
                with ExitStack() as held:
                    base = settled(one_by_one(make, count, bang, device, held), repeated, device)
                    here = settled(together(make, count, bang, device), repeated, device)
                    found |= ratios({row: here}, base, pairs=7)
                found[row]["steps"] = repeated
    return found


def whole_grid(device: str = "cuda", steps: int = 300, models: int = len(GRID)) -> dict[str, Any]:
    """The seconds that 169 LeNets need for 10,000 iterations, from those of some steps on a GPU.

    With convolutions as matrix products, as the stack writes them there, and as one convolution in groups.
    """
    found: dict[str, Any] = {"models": models, "steps": steps, "goal": GOAL}
    grouped = mock.patch.object(stack, "products", lambda layer, x, bias: layer._conv_forward(x, layer.weight, bias))
    for name, written in (("products", nullcontext()), ("groups", grouped)):
        with written:
            step = together(LeNet, models, True, device)
            settled(step, max(steps // 10, 1), device)()
            spent = seconds(settled(step, steps, device))
        found[name] = {"seconds": round(spent, 2), "extrapolated": round(spent / steps * STEPS, 1)}
        del step
    return found


def main() -> None:
    """Measure, print, write."""
    torch.set_flush_denormal(True)
    keep_freed_memory()  # as the command line does
    began = time.monotonic()
    cuda = torch.cuda.is_available()
    rows = compared("cuda" if cuda else "cpu")
    for name, row in rows.items():
        print(f"{row['ratio']:6.3f}  {row['quartiles']}  {name}", flush=True)
    grid = whole_grid() if cuda else {}
    print(f"all 169 LeNets, extrapolated: {grid}" if cuda else "no GPU here: the 169 LeNets were not timed")
    facts = provenance(
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if cuda else "cpu",
        seconds=round(time.monotonic() - began, 1),
    )
    found = {"ratios": rows, "grid": grid, "provenance": facts}
    write_whole(PATH, json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    main()
