"""How big each mistake of docs/pitfalls.md is, where the page gives a figure of ours.

    bessemer train lenet-mnist
    python benchmarks/pitfalls.py runs/lenet-mnist

On the 400 test digits, with the network of examples/is_this_gradient_hidden.py, unless the name says otherwise; the
run is asked for its PASS scores. Writes results/pitfalls.json: shares in per cent.
"""

from __future__ import annotations

import json
import runpy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bessemer as bs
from bessemer.attacks import PGD
from bessemer.evaluation import similarity, suites
from bessemer.records import provenance, write_whole
from timing import seconds

HERE = Path(__file__).parents[1]


def share(true: Tensor) -> float:
    """Of booleans or parts of one, in per cent."""
    return round(100 * true.double().mean().item(), 2)


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified rightly."""
    with torch.no_grad():
        return model(images).argmax(1) == labels


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross-entropy at the pixels."""
    images = images.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(images), labels, reduction="sum"), images)[0]


def underflow(louder: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Logits × 100: no gradient, and a direction divided by its own maximum, which is zero."""
    direction = gradient(louder, images, labels)
    hidden = (direction == 0).flatten(1).all(1)
    blind = (images + 0.1 * direction / direction.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)
    return {
        "gradient all zero": share(hidden),
        "without a gradient, turned by NaN": share(~right(louder, blind, labels)[hidden]),
        "accuracy on NaN": share(right(louder, blind, labels)),
    }


def clipping(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """PGD-40 at Linf 0.1 with and without the box, the steps of `PGD`."""
    threat = bs.Linf(0.1)
    boxed = PGD(threat, steps=40)
    step = 2.5 * threat.eps / 40
    generator = torch.Generator().manual_seed(0)
    free = images + threat.eps * (2 * torch.rand(images.shape, generator=generator) - 1)
    for _ in range(40):
        free = images + (free + step * gradient(model, free, labels).sign() - images).clamp(-threat.eps, threat.eps)
    return {
        "pixels on the border of [0, 1]": share((images == 0) | (images == 1)),
        "PGD-40": share(right(model, boxed(model, images, labels), labels)),
        "PGD-40 without clipping": share(right(model, free, labels)),
        "pixels outside": share((free < 0) | (free > 1)),
    }


def units(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """A radius of 0.1 for images divided by 0.38."""
    return {
        f"PGD-40 at {eps}": share(right(model, PGD(bs.Linf(eps), steps=40)(model, images, labels), labels))
        for eps in (0.038, 0.1)
    }


def ball_then_box() -> dict[str, list[float]]:
    """L1 sizes of four changes, clipped after the ball, and projected onto ball and box together."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 64, 64, generator=generator)
    moved = images + torch.randn(images.shape, generator=generator) * (
        torch.rand(images.shape, generator=generator) < 0.1
    )
    threat = bs.L1(12.0)
    after = (images + threat.into_ball(moved - images)).clamp(0, 1)
    return {
        "ball, then box": [round(size, 1) for size in threat.size(after - images).tolist()],
        "ball and box": [round(size, 1) for size in threat.size(threat.project(moved, images) - images).tolist()],
    }


def running_statistics(digits: bs.data.DataSet, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy after 20 passes in training mode, of a network with batch norm behind its first layer."""

    def trained() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        train, classes = digits.train.at(slice(None))
        for _ in range(60):
            optimizer.zero_grad()
            cross_entropy(model(train), classes).backward()
            optimizer.step()
        return model

    def attacked(model: nn.Module, eps: float) -> None:
        at = images
        for _ in range(20):
            at = (images + (at + eps / 8 * gradient(model, at, labels).sign() - images).clamp(-eps, eps)).clamp(0, 1)

    def one_class(model: nn.Module) -> None:
        for _ in range(20):
            model(images[labels == 0])

    ways: dict[str, Callable[[nn.Module], object]] = {
        "untouched": lambda model: None,
        "PGD-20 at 0.1": lambda model: attacked(model, 0.1),
        "PGD-20 at 0.3": lambda model: attacked(model, 0.3),
        "images of one class": one_class,
    }
    found = {}
    for name, way in ways.items():
        model = trained()
        way(model)
        found[name] = share(right(model.eval(), images, labels))
    return found


def restarts(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Ten runs of PGD-3: the mean of what stands, and what stands against all."""
    found = {}
    for threat in (bs.Linf(0.1), bs.L2(0.7)):
        runs = [right(model, PGD(threat, steps=3)(model, images, labels, seed=n), labels) for n in range(10)]
        found[f"{threat}, on average"] = round(statistics.mean(share(run) for run in runs), 2)
        found[f"{threat}, together"] = share(torch.stack(runs).all(0))
    return found


def cropped(run: str) -> dict[str, float]:
    """Mean PASS of FGS examples of the first 300 MNIST test images, on the whole map and on its middle."""
    model: Any = bs.load(run).eval()
    images, labels = bs.data.load("mnist").test.at(slice(0, 300))
    attacked = suites.named("bang", bs.Linf(0.1)).attacks["FGS"](model, images, labels)
    fooled = right(model, images, labels) & ~right(model, attacked, labels)
    images, attacked = images[fooled], attacked[fooled]
    middle = []
    for one, other in zip(255 * attacked.double().numpy(), 255 * images.double().numpy(), strict=True):
        warped, _ = similarity.align(one, other)
        settings: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        middle.append(structural_similarity(warped[0], other[0], data_range=255, **settings))
    return {
        "examples": len(images),
        "whole map": round(similarity.pass_score(attacked, images).mean().item(), 3),
        "middle": round(float(np.mean(middle)), 3),
    }


def denormals() -> dict[str, float]:
    """Nanoseconds for each element of an exponential and of a product of matrices, normal and denormal."""
    found = {}
    normal, tiny = torch.full((1_000_000,), -80.0), torch.full((1_000_000,), -95.0)
    one, other = torch.rand(512, 512), torch.rand(512, 512)
    small = 1e-20 * one, 1e-20 * other
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "exponential": (normal.exp, len(normal)),
        "exponential, denormal": (tiny.exp, len(tiny)),
        "product": (lambda: one @ other, one.numel()),
        "product, denormal": (lambda: small[0] @ small[1], one.numel()),
    }
    for name, (way, elements) in ways.items():
        found[name] = round(1e9 * statistics.median(seconds(way) for _ in range(15)) / elements, 2)
    return found


def main(run: str) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    example = runpy.run_path(str(HERE / "examples" / "is_this_gradient_hidden.py"))
    digits, model = example["digits"], example["model"].eval().requires_grad_(False)
    images, labels = digits.test.at(slice(None))
    found = {
        "underflow": underflow(example["Louder"](model), images, labels),
        "clipping": clipping(model, images, labels),
        "units": units(model, images, labels),
        "L1 ball and box, 12": ball_then_box(),
        "running statistics": running_statistics(digits, images, labels),
        "restarts": restarts(model, images, labels),
        "PASS": cropped(run),
        "denormals, ns": denormals(),
    }
    text = json.dumps(found | {"provenance": provenance(threads=1)}, indent=1, ensure_ascii=False)
    print(text)
    write_whole(HERE / "results" / "pitfalls.json", text.encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
