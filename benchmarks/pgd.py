"""PGD-20 over the bare loop of passes, exact float32, every step taken (target: at most 1.05); and peers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD
from bessemer.models import CifarQuick, LeNet
from bessemer.threat import Linf
from timing import ratios

STEPS, EPS, STEP_SIZE = 20, 0.1, 0.0125


def bare(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Nothing but the passes, the steps and the projection."""
    x = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
        x = x.detach() + STEP_SIZE * gradient.sign()
        x = torch.min(torch.max(x, images - EPS), images + EPS).clamp(0, 1)
    return x


def peers(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Callable[[], object]]:
    """The same attack in other libraries, where they are installed."""
    found: dict[str, Callable[[], object]] = {}
    try:
        import torchattacks

        attack = torchattacks.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=STEPS)
        found["torchattacks"] = lambda: attack(images, labels)
    except ImportError:
        pass
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS)
        found["foolbox"] = lambda: pgd(wrapped, images, labels, epsilons=EPS)
    except ImportError:
        pass
    return found


def measure() -> dict[str, dict]:
    """Ratios by network and library, in the layout the caller's model has."""
    found = {}
    for name, make, shape in (
        ("LeNet, batch 64", LeNet, (64, 1, 28, 28)),
        ("CIFAR-quick, batch 100", CifarQuick, (100, 3, 32, 32)),
    ):
        torch.manual_seed(0)
        model = make().eval()
        images = torch.rand(shape)
        labels = model(images).argmax(1)
        for parameter in model.parameters():  # the bare loop is given every advantage
            parameter.requires_grad_(False)
        attack = PGD(Linf(EPS), steps=STEPS, step_size=STEP_SIZE)
        runs = {"bessemer": lambda m=model, x=images, y=labels, a=attack: a(m, x, y), **peers(model, images, labels)}
        named = {f"PGD-20 / bare loop, {name}: {library}": run for library, run in runs.items()}
        found |= ratios(named, lambda m=model, x=images, y=labels: bare(m, x, y))
    return found
