"""What purification costs: `python benchmarks/purification.py [LAB]`. Writes results/benchmarks-purification.json.

LAB: an experiment's folder, such as runs/purification-lab-cpu/d1024-k6-seed0, whose own record of times is added.
Targets: drawing samples at most 0.1 of a training step; two ResNet-18 compared in 10 seconds; 64 neurons of a ResNet at
256 steps in a few minutes; the laboratory at d = 512 in 5 minutes, at d = 1,024 in 30.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from bessemer.models import ResNet
from bessemer.purification import features
from bessemer.purification.purify import purify
from bessemer.purification.sparse_coding.data import SparseCoding, Stream
from bessemer.purification.sparse_coding.network import SymmetricReLU
from bessemer.records import provenance, read_metrics, read_record, write_whole
from bessemer.training.methods import Plain
from timing import ratios, seconds

PATH = Path(__file__).parents[1] / "results" / "benchmarks-purification.json"


def drawing(dim: int) -> dict[str, dict]:
    """Drawing a batch of 500 over a clean training step on one."""
    stream = Stream(SparseCoding(dim, 6), 500, seed=0)
    network, batch = SymmetricReLU(dim, 2 * dim, 0.002), stream.next()
    network.biases.fill_(0.01)

    def step() -> None:
        network.zero_grad()
        Plain().loss(network, batch).backward()

    return ratios({f"drawing samples / clean step, d = {dim:,}": stream.next}, step)


def compared() -> float:
    """Two ResNet-18, and an independent one beside them."""
    clean, robust, other = (ResNet(depth=18, width=64) for _ in range(3))
    return seconds(lambda: purify(clean, robust, independent=other))


def maximised() -> float:
    """64 neurons of a ResNet-8, 256 steps."""
    network = ResNet(depth=8, width=16).eval()
    return seconds(lambda: features.maximise(network, "stages.2", range(64), (3, 32, 32), steps=256))


def of_laboratory(folder: Path) -> dict[str, float]:
    """How long each part of an experiment took, as it was noted when it was made."""
    times = {path.stem: read_record(path).get("seconds") for path in sorted(folder.glob("*.json"))}
    for phase in ("clean", "robust"):
        times[f"{phase} training"] = round(
            sum(line["seconds"] for line in read_metrics(folder / phase / "metrics.jsonl")), 1
        )
    return {name: value for name, value in times.items() if value is not None}


def main(laboratories: list[str]) -> None:
    """Measure, print, write."""
    began = time.monotonic()
    found = {
        "ratios": {**drawing(512), **drawing(1024)},
        "seconds": {
            "two ResNet-18 and an independent one compared": round(statistics.median(compared() for _ in range(3)), 2),
            "64 neurons of a ResNet-8 maximised, 256 steps": round(maximised(), 1),
            **{f"laboratory {Path(one).name}": of_laboratory(Path(one)) for one in laboratories},
        },
    }
    print(json.dumps(found, indent=1, ensure_ascii=False))
    facts = provenance(threads=torch.get_num_threads(), seconds=round(time.monotonic() - began, 1))
    write_whole(PATH, json.dumps({**found, "provenance": facts}, indent=1, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
