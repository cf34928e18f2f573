"""What docs/scale.md multiplies: a pass at the pixels, a training step and a decoded photo, in seconds of one CPU core.

    python benchmarks/scale.py

A ResNet-50 at 224×224 in channels_last on one thread: its forward pass, the gradient at the pixels as an attack takes
it (evaluation mode, frozen weights), and a training step (forward, backward, SGD with momentum), in float32 and under
bfloat16 autocast; and ImageNet-like JPEG files (those of `decoding.py`) made into random parts of 224×224. What counts
is the processor's time and not the clock's, so that what runs beside shows less. Medians of a few rounds, taken in
turn. Writes results/benchmarks-scale.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import decoding
from bessemer import data
from bessemer.models import BottleneckResNet
from bessemer.records import provenance, write_whole

BATCH, ROUNDS = 8, 5


def processor_seconds(run: Callable[[], object]) -> float:
    """What one call costs this process."""
    began = time.process_time()
    run()
    return time.process_time() - began


@contextmanager
def attacked(model: torch.nn.Module) -> Iterator[None]:
    """In evaluation mode, the weights frozen."""
    model.eval().requires_grad_(False)
    yield
    model.train().requires_grad_(True)


def passes(precision: torch.dtype) -> dict[str, Callable[[], object]]:
    """The three things that a network is asked for."""
    torch.manual_seed(0)
    model: torch.nn.Module = BottleneckResNet(depth=50)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (BATCH,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return cross_entropy(model(x), labels)

    def forward() -> None:
        with attacked(model), torch.no_grad():
            loss(images)

    def at_the_pixels() -> None:
        with attacked(model):
            x = images.clone().requires_grad_()
            torch.autograd.grad(loss(x), x)

    def step() -> None:
        optimizer.zero_grad()
        loss(images).backward()
        optimizer.step()

    return {"forward pass": forward, "gradient at the pixels": at_the_pixels, "training step": step}


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    began, seeds = time.monotonic(), count()
    asked = {
        f"{name}, {str(precision).removeprefix('torch.')}": (run, BATCH)
        for precision in (torch.float32, torch.bfloat16)
        for name, run in passes(precision).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "photos"
        decoding.write(home)
        split = data.load("image-folder", path=str(home), workers=0, held_out=0).train
        asked["decoded photo"] = lambda: decoding.ours(split, next(seeds)), decoding.BATCH * decoding.BATCHES
        for run, _ in asked.values():
            run()
        times = [{name: processor_seconds(run) / size for name, (run, size) in asked.items()} for _ in range(ROUNDS)]
    found = {name: float(f"{statistics.median(one[name] for one in times):.4g}") for name in asked}
    for name, seconds in found.items():
        print(f"{seconds:8.4f} s an image  {name}")
    load = [round(one, 1) for one in os.getloadavg()]
    facts = provenance(threads=1, seconds=round(time.monotonic() - began, 1), load=load)
    text = json.dumps({"processor seconds an image": found, "provenance": facts}, indent=1, ensure_ascii=False)
    write_whole(Path(__file__).parents[1] / "results" / "benchmarks-scale.json", text.encode() + b"\n")


if __name__ == "__main__":
    main()
