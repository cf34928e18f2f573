"""The memory that a training step of ResNet-638 at 224×224 takes, with and without activation checkpointing.

    python benchmarks/deep_memory.py

A step is a forward pass in training mode, a backward pass and SGD with momentum, in float32, in channels_last, the
layout Bessemer trains in, once the momentum is there. Each case runs in a process of its own. On a CPU its peak is the
largest resident size of that process, less what it is before the network is made, with a C library that gives freed
blocks back (by itself glibc keeps many, and what is freed does not show); on a GPU what torch allocates at most. A case
that asks for more than LIMIT is stopped, and the table says so. Weights, gradients and momentum are 2.7 GB of each
peak. Writes results/benchmarks-deep-memory.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bessemer.models import BottleneckResNet
from bessemer.records import provenance, write_whole

DEPTH = 638
BATCHES = (1, 8)
LIMIT = 18e9  # bytes that a case may hold on a CPU
GB = 1e9
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}  # blocks from this size on go back to the system when freed


def resident() -> float:
    """The largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def case(batch: int, checkpointing: bool, device: str) -> dict[str, Any]:
    """What a training step takes: GB at the peak."""
    torch.set_flush_denormal(True)
    before = resident()
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (int(before + LIMIT),) * 2)
    try:
        torch.manual_seed(0)
        model: torch.nn.Module = BottleneckResNet(depth=DEPTH, checkpointing=checkpointing).to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.rand(batch, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 1000, (batch,), device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=False)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes the momentum
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    except (RuntimeError, MemoryError) as problem:  # torch raises a plain RuntimeError where a CPU has no more
        if "memory" not in str(problem):
            raise
        return {"peak GB": f"more than {LIMIT / GB:.0f}; stopped" if device == "cpu" else "more than the GPU has"}
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident() - before
    return {"peak GB": round(peak / GB, 2)}


def main() -> None:
    """Run every case, print, write."""
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = {}
    for batch in BATCHES:
        for checkpointing in (False, True):
            arguments = [sys.executable, __file__, str(batch), "again" if checkpointing else "kept", device]
            answer = subprocess.run(
                arguments, check=True, capture_output=True, text=True, env={**os.environ, **RETURNING}
            ).stdout
            name = f"batch {batch}, {'with' if checkpointing else 'without'} checkpointing"
            rows[name] = json.loads(answer)
            print(f"{name}: {rows[name]}", flush=True)
    found = {
        "network": f"ResNet-{DEPTH}, 224×224, float32, channels_last",
        "steps": rows,
        "provenance": provenance(
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
            seconds=round(time.monotonic() - began, 1),
        ),
    }
    path = Path(__file__).parents[1] / "results" / "benchmarks-deep-memory.json"
    write_whole(path, json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        size, activations, where = sys.argv[1:]
        print(json.dumps(case(int(size), activations == "again", where)))
