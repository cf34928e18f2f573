"""What an hour on two cores buys: `robust-cifar-cpu` against a published fast recipe, the same network, the same time.

    bessemer train robust-cifar-cpu
    bessemer train fast-fgsm-cifar-cpu
    python benchmarks/hour.py runs/robust-cifar-cpu runs/fast-fgsm-cifar-cpu

PGD-50 at Linf 8/255 (steps of 2/255, as E. Wong et al., "Fast is better than free", 2020) on the first 1,000 test
images, and its twin on the margin loss; differences are counted image by image. How long the recipes take is measured
anew, with the threads of this process: the runs may have been made beside other work. Writes
results/benchmarks-hour.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import bessemer as bs
from bessemer.papers.at_scale import compared
from bessemer.records import provenance, write_whole

IMAGES = 1000
THREAT = bs.Linf(8 / 255)
ATTACK = bs.attacks.PGD(THREAT, steps=50, step_size=2 / 255)
SUITE = bs.evaluation.Suite("PGD-50", {"PGD-50": ATTACK, "PGD-50, margin loss": replace(ATTACK, loss="margin")})


def minutes(run: Path) -> dict[str, float]:
    """How long the run's recipe trains, from 60 of its updates; validation comes on top."""
    recipe = bs.Recipe.read(run / "recipe.toml")
    iterations = recipe.training.iterations
    short = replace(recipe.training, iterations=60, log_every=10, validate_every=60, checkpoint_every=60)
    with tempfile.TemporaryDirectory() as folder:
        bs.train(replace(recipe, training=short), folder)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    each = statistics.median(line["seconds"] for line in lines if "seconds" in line) / 10
    return {"seconds an update": round(each, 3), "updates": iterations, "minutes": round(each * iterations / 60, 1)}


def main(*runs: str) -> None:
    """Measure, print, write."""
    test = bs.data.load("cifar10").test.at(slice(0, IMAGES))
    found: dict[str, Any] = {}
    standing = {}
    for run in map(Path, runs):
        model: Any = bs.load(run)
        evaluation = bs.evaluate(model, test, SUITE, THREAT)
        worst = evaluation.worst_case()
        standing[run.name] = evaluation.survivors("PGD-50")
        found[run.name] = {
            "clean": str(evaluation.clean_accuracy()),
            **{name: str(evaluation.robust_accuracy(name)) for name in SUITE.attacks},
            "both": str(worst),
            "doubts": [finding.name for finding in evaluation.findings if finding.verdict == "doubt"],
            "training": minutes(run),
        }
        print(run.name, found[run.name], flush=True)
    one, *others = standing
    found |= {
        f"{one} over {other}, PGD-50": compared.difference([standing[one]], [standing[other]]).told()
        for other in others
    }
    found |= {"images": IMAGES, "provenance": provenance(threads=torch.get_num_threads())}
    text = json.dumps(found, indent=1, ensure_ascii=False)
    write_whole(Path(__file__).parents[1] / "results" / "benchmarks-hour.json", text.encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
