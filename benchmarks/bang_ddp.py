"""What balancing costs where two processes share a batch: a step under DistributedDataParallel, one thread each.

`python benchmarks/bang_ddp.py` writes results/benchmarks-bang-ddp.json. Every balanced layer waits once a step for the
largest norm of the other process (gloo on CPUs), besides the sum of gradients that both kinds of training wait for.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from bang_step import step
from bessemer.allocation import keep_freed_memory
from bessemer.layers import balance
from bessemer.models import CifarQuick, LeNet
from bessemer.records import provenance, write_whole
from networks import resnet18
from timing import ratios

PROCESSES = 2


def work(rank: int, meeting: str) -> None:
    """One process: both do the same steps in the same order, the first writes what it measured."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=PROCESSES)
    found: dict[str, dict] = {}
    for name, make, shape, times in (
        ("LeNet, 2 x 32", LeNet, (32, 1, 28, 28), 20),
        ("CIFAR-quick, 2 x 50", CifarQuick, (50, 3, 32, 32), 5),
        ("ResNet-18, 2 x 8", resnet18, (8, 3, 32, 32), 1),
    ):
        torch.manual_seed(rank)
        images, labels = torch.rand(shape), torch.randint(0, 10, shape[:1])
        plain, balanced = (make().to(memory_format=torch.channels_last) for _ in range(2))
        with balance(balanced, beta=1.0, epsilon=0.8):
            one, other = DistributedDataParallel(balanced), DistributedDataParallel(plain)
            found |= ratios(
                {f"BANG step / plain step under DDP: {name}": partial(step, one, images, labels, times)},
                partial(step, other, images, labels, times),
            )
    if rank == 0:
        for name, row in found.items():
            print(row["ratio"], row["quartiles"], name)
        facts = {"ratios": found, "provenance": provenance(processes=PROCESSES, threads=1)}
        path = Path(__file__).parents[1] / "results" / "benchmarks-bang-ddp.json"
        write_whole(path, json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")
    distributed.destroy_process_group()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (f"{folder}/meeting",), PROCESSES)
