"""On an adversarially trained CIFAR-10 network: early leaving, and the suite `standard` against two references.

    bessemer train adversarial-cifar-quick
    python benchmarks/trained.py runs/adversarial-cifar-quick

Targets: PGD-40 in the fast mode with early leaving at most 0.30 of the bare loop, where about half of the images stand;
the fast mode's robust accuracy within 0.2 points of the exact one's; `standard` at most half the time of AutoAttack
(torchattacks' port of its attacks, and the original where it is installed), and of our own attacks run step by step:
every attack on every image, every step taken, nobody leaving early, exact float32. Writes
results/benchmarks-trained.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bessemer as bs
import pgd
from bessemer.allocation import keep_freed_memory
from bessemer.arithmetic import exact
from bessemer.evaluation import suites
from bessemer.evaluation.fast import cheaper
from bessemer.records import provenance, write_whole
from timing import ratios

THREAT = bs.Linf(8 / 255)
IMAGES = 48
AGREEMENT = 1000  # images on which exact and fast are compared


def early_leaving(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict]:
    """PGD-40 on images of which about half fall, over the bare loop that takes every step for all of them."""
    right = model(images).argmax(1) == labels
    images, labels = images[right][:100], labels[right][:100]
    for level in range(1, 17):
        attack = bs.attacks.PGD(bs.Linf(level / 255), steps=pgd.STEPS)
        standing = (model(attack(model, images, labels)).argmax(1) == labels).float().mean().item()
        if standing <= 0.5:
            break
    through, _ = cheaper(model, images)
    runs: dict[str, Callable[[], object]] = {
        "exact": lambda: attack.run(model, images, labels, until_success=True),
        "fast": lambda: attack.run(model, images, labels, until_success=True, through=through),
    }
    named = {f"PGD-40, leaving early, {100 * standing:.0f} % stand: {mode}": run for mode, run in runs.items()}
    return ratios(named, lambda: pgd.bare(model, images, labels), pairs=7)


def agreement(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Robust accuracy under PGD-40 in both modes, in per cent."""
    suite = bs.evaluation.Suite("PGD-40", {"PGD-40": bs.attacks.PGD(THREAT, steps=40)})
    found = {}
    for mode in ("exact", "fast"):
        worst = bs.evaluate(model, (images, labels), suite, fast=mode == "fast").worst_case()
        assert worst is not None
        found[mode] = round(100 * worst.value, 2)
    return {"images": len(images), **found}


def standard(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Seconds and robust accuracy (per cent) of each way, once, one after the other."""
    chosen = suites.named("standard", THREAT)

    def ours(fast: bool) -> float:
        worst = bs.evaluate(model, (images, labels), "standard", THREAT, fast=fast).worst_case()
        assert worst is not None
        return worst.value

    def step_by_step() -> float:
        standing = model(images).argmax(1) == labels
        with exact():
            for attack in chosen.attacks.values():
                standing &= model(attack(model, images, labels)).argmax(1) == labels
        return standing.float().mean().item()

    def judged(attacked: Tensor) -> float:
        return (model(attacked).argmax(1) == labels).float().mean().item()

    runs: dict[str, Callable[[], float]] = {"bessemer": lambda: ours(False), "bessemer, fast": lambda: ours(True)}
    try:
        import torchattacks as theirs

        settings: dict[str, Any] = {"norm": "Linf", "eps": THREAT.eps}
        # their AutoAttack takes 10 steps where the original takes 100: the same attacks with the original's settings
        attacks = [
            theirs.APGD(model, steps=100, loss="ce", **settings),
            theirs.APGDT(model, steps=100, n_classes=10, **settings),
            theirs.FAB(model, steps=100, multi_targeted=True, n_classes=10, **settings),
            theirs.Square(model, n_queries=5000, **settings),
        ]
        runs["torchattacks, 100 steps"] = lambda: judged(theirs.MultiAttack(attacks)(images, labels))
    except ImportError:
        pass
    try:
        from autoattack import AutoAttack

        original = AutoAttack(model, norm="Linf", eps=THREAT.eps, device="cpu", verbose=False)
        runs["AutoAttack"] = lambda: judged(original.run_standard_evaluation(images, labels, bs=len(images)))
    except ImportError:
        pass
    runs["step by step"] = step_by_step
    found = {}
    for name, run in runs.items():
        began = time.monotonic()
        with torch.enable_grad():
            robust = run()
        found[name] = {"seconds": round(time.monotonic() - began, 1), "robust": round(100 * robust, 2)}
        print(f"standard, {len(images)} images: {name}: {found[name]}", flush=True)
    return found


def main(run: str) -> None:
    """Measure, print, write."""
    keep_freed_memory()
    torch.set_flush_denormal(True)  # for the loops by hand and the peers too
    began = time.monotonic()
    model: Any = bs.load(run)
    model.eval().requires_grad_(False)
    test = bs.data.load("cifar10").test
    leaving = early_leaving(model, *test.at(slice(0, 400)))
    for name, row in leaving.items():
        print(f"{row['ratio']:6.3f}  {row['quartiles']}  {name}", flush=True)
    modes = agreement(model, *test.at(slice(0, AGREEMENT)))
    print(f"PGD-40, robust accuracy: {modes}", flush=True)
    found = {
        "ratios": leaving,
        "modes": modes,
        "standard": {"images": IMAGES, "threat": str(THREAT), **standard(model, *test.at(slice(0, IMAGES)))},
        "provenance": provenance(threads=torch.get_num_threads(), seconds=round(time.monotonic() - began, 1)),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    write_whole(Path(__file__).parents[1] / "results" / "benchmarks-trained.json", text.encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
