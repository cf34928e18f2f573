"""How well keep_norm keeps the norm: its estimate, and a second one, against the truth, as training goes on.

    python benchmarks/kept_norm.py

Of each layer and at each stage: the beta that keeps the norm of the weight gradient exactly, from two backward
passes of the same batch, and what two formulas that need only the samples' norms say. Each row is estimate / truth over
20 batches: 1 where the balanced update is exactly as long as the regular one, above 1 where it is longer. Writes
results/benchmarks-kept-norm.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bessemer as bs
from bessemer.arithmetic import flushed
from bessemer.data import Batches
from bessemer.layers import balance, rates
from bessemer.layers.adaptive import epsilon_for, norm_keeping
from bessemer.layers.balance import LINEAR_LAYERS, sample_norms
from bessemer.models import CifarQuick, LeNet
from bessemer.records import provenance, write_whole
from bessemer.training import SGD, Bang, Method, Plain, fit
from bessemer.training.schedules import Fixed

EPSILON = 0.815  # the largest allowed
BATCHES = 20
ESTIMATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "root of the sum of squares": norm_keeping,
    "sum": lambda norms, scaled: norms.sum() / scaled.sum(),
}


def weight_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of each layer: the weight gradient, and the samples' norms at the layer's output."""
    norms: dict[str, Tensor] = {}

    def listen(name: str, output: Tensor) -> None:
        output.register_hook(lambda gradient: norms.__setitem__(name, sample_norms(gradient)))

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LINEAR_LAYERS)}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: listen(name, output))
        for name, layer in layers.items()
    ]
    model.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same dropout both times
        cross_entropy(model(images), labels).backward()
    for hook in hooks:
        hook.remove()
    return {name: layer.weight.grad.clone() for name, layer in layers.items()}, norms


def compared(model: nn.Module, batches: Batches, contributing: float) -> dict[str, dict[str, float | list[float]]]:
    """Of each layer: the median epsilon, and each estimate over the truth (median and quartiles)."""
    model.train()
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(BATCHES):
        batch = batches.next()
        regular, norms = weight_gradients(model, batch.images, batch.labels)
        with balance(model, epsilon=EPSILON, contributing=contributing):
            balanced, _ = weight_gradients(model, batch.images, batch.labels)
        for name, own in norms.items():
            epsilon = epsilon_for(contributing, own, EPSILON)
            scaled = own * rates(own, 1.0, epsilon)
            truth = regular[name].norm() / balanced[name].norm()
            row = found.setdefault(name, {"epsilon": [], **{estimate: [] for estimate in ESTIMATES}})
            row["epsilon"].append(epsilon.item())
            for estimate, formula in ESTIMATES.items():
                row[estimate].append((formula(own, scaled) / truth).item())
    return {
        name: {
            "epsilon": round(statistics.median(row["epsilon"]), 3),
            **{estimate: [round(cut, 3) for cut in statistics.quantiles(row[estimate], n=4)] for estimate in ESTIMATES},
        }
        for name, row in found.items()
    }


def main() -> None:
    """Measure, print, write."""
    began = time.monotonic()
    found: dict[str, dict] = {}
    for name, source, make, size, lr, decay, contributing, stages in (
        ("LeNet", "mnist", LeNet, 64, 0.01, 5e-4, 0.5, (100, 500, 2000)),
        ("CIFAR-quick", "cifar10", CifarQuick, 100, 0.001, 0.004, 0.9, (300, 1500)),  # it stalls later
    ):
        data = bs.data.load(source).train
        methods: dict[str, Method] = {
            "regular training": Plain(),
            "self-adaptive BANG": Bang(epsilon=EPSILON, contributing=contributing, keep_norm=True),
        }
        for kind, method in methods.items():
            torch.manual_seed(0)
            model = make().to(memory_format=torch.channels_last)
            if isinstance(model, CifarQuick):
                model.learn_statistics(data.images)
            batches = Batches(data, size, seed=0)
            optimizer = SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
            for before, stage in zip((0, *stages), stages, strict=False):
                with flushed():
                    fit(model, batches, method, optimizer, Fixed(), lr, stage - before, lambda done, loss: True)
                    rows = compared(model, batches, contributing)
                for layer, row in rows.items():
                    print(f"{name}, {kind}, after {stage}: {layer}: {row}", flush=True)
                found[f"{name}, {100 * contributing:.0f} % contributing, {kind}, after {stage} steps"] = rows
    facts = provenance(threads=torch.get_num_threads(), seconds=round(time.monotonic() - began, 1))
    text = json.dumps({"estimates": found, "provenance": facts}, indent=1)
    write_whole(Path(__file__).parents[1] / "results" / "benchmarks-kept-norm.json", text.encode() + b"\n")


if __name__ == "__main__":
    main()
