"""Adversarial training on one GPU: images per second, and the share of the device's matrix rate that is.

    python benchmarks/adversarial_gpu.py

ResNet-18 for 32×32 images, PGD-10 at Linf 8/255, by the same `Update` that training uses, on batches that are there
already. An image costs 2k + 3 forward passes' worth of multiply-adds: each of the k steps a forward pass and a backward
pass to the pixels, the training step a forward pass and a backward pass to pixels' and weights' gradients. The matrix
rate is what the device reaches on one large square product in the same precision. TF32 is off.
Writes results/benchmarks-adversarial-gpu.json. On a CPU only `measure` with small settings makes sense.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.models import Network, ResNet
from bessemer.models.cost import cost
from bessemer.records import provenance, write_whole
from bessemer.threat import Linf
from bessemer.training import SGD, Adversarial
from bessemer.training.update import PRECISIONS, Update

KINDS = (("float32", False, False), ("bfloat16", True, False), ("bfloat16", True, True))  # channels last; compiled


def seconds(run: Callable[[], object], device: str, times: int) -> float:
    """The median time of a call, once it has been made three times."""
    found = []
    for _ in range(times + 3):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[3:])


def matrix_rate(device: str, precision: str, size: int) -> float:
    """Multiply-adds per second of a product of two square matrices."""
    one, other = (torch.randn(size, size, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
    return size**3 / seconds(lambda: one @ other, device, 20)


def measure(
    make: Callable[[], Network],
    device: str,
    batches: tuple[int, ...] = (128, 512, 1024),
    steps: int = 10,
    size: int = 8192,
    times: int = 10,
    kinds: tuple[tuple[str, bool, bool], ...] = KINDS,
) -> dict[str, dict]:
    """Images per second, and the share of the matrix rate, by precision and batch."""
    work = (2 * steps + 3) * cost(make).multiply_adds
    rates = {precision: matrix_rate(device, precision, size) for precision in {kind[0] for kind in kinds}}
    found = {}
    for precision, channels_last, compiled in kinds:
        for number in batches:
            torch.manual_seed(0)
            model = make().to(device).train()
            if channels_last:
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if compiled:
                model.compile()
            images = torch.rand(number, *model.image_shape, device=device)
            index = torch.arange(number, device=device)
            batch = Batch(images, index % model.classes, index, seed=0)
            method = Adversarial(PGD(Linf(8 / 255), steps=steps, last=True))
            update = Update(model, method, SGD(model.parameters(), 1e-3, 0.9, 5e-4), precision)
            each = seconds(partial(update, batch), device, times) / number
            name = ", ".join([precision, *["channels last"] * channels_last, *["compiled"] * compiled])
            found[f"{name}, batch {number}"] = {
                "images_per_second": round(1 / each, 1),
                "share_of_matrix_rate": round(work / each / rates[precision], 3),
                "matrix_rate_tflops": round(2 * rates[precision] / 1e12, 2),
            }
    return found


def main() -> None:
    """Measure on the GPU, print, write."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    began = time.monotonic()
    found = measure(partial(ResNet, depth=18, width=64), "cuda")
    for name, row in found.items():
        print(f"{row['images_per_second']:9.0f} images/s  {100 * row['share_of_matrix_rate']:5.1f} %  {name}")
    facts = {
        "network": "ResNet-18, 32×32",
        "attack": "PGD-10, last point",
        "steps": found,
        "provenance": provenance(device=torch.cuda.get_device_name(), seconds=round(time.monotonic() - began, 1)),
    }
    path = Path(__file__).parents[1] / "results" / "benchmarks-adversarial-gpu.json"
    write_whole(path, json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    main()
