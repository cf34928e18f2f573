"""PGD over the bare loop of passes: exact float32 with every step taken (target 1.02), peers, and the fast mode.

The fast mode searches a folded bfloat16 copy and asks the model itself about each success: all steps for every image
(target 0.45), and with images leaving once they have fallen (target 0.30, on a network of about 50 % robust accuracy).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.arithmetic import exact
from bessemer.attacks import PGD
from bessemer.evaluation.fast import cheaper
from bessemer.models import CifarQuick, LeNet
from bessemer.threat import Linf
from networks import resnet18
from timing import ratios

STEPS, EPS, STEP_SIZE = 40, 0.1, 0.00625


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
    try:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        shape = tuple(images.shape[1:])
        estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1))
        evasion = ProjectedGradientDescentPyTorch(
            estimator, eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=1, batch_size=len(images),
            verbose=False,
        )  # fmt: skip
        found["ART"] = lambda: evasion.generate(images.numpy(), labels.numpy())
    except ImportError:
        pass
    return found


@exact()
def measure() -> dict[str, dict]:
    """Ratios by network and library, in the layout the caller's model has."""
    found = {}
    for name, make, shape, pairs in (
        ("LeNet, batch 64", LeNet, (64, 1, 28, 28), 7),
        ("CIFAR-quick, batch 100", CifarQuick, (100, 3, 32, 32), 3),
        ("ResNet-18, batch 32", resnet18, (32, 3, 32, 32), 2),
    ):
        torch.manual_seed(0)
        model = make().eval()
        images = torch.rand(shape)
        labels = model(images).argmax(1)
        for parameter in model.parameters():  # the bare loop is given every advantage
            parameter.requires_grad_(False)
        attack = PGD(Linf(EPS), steps=STEPS, step_size=STEP_SIZE)
        through, _ = cheaper(model, images)
        runs = {
            "bessemer": lambda m=model, x=images, y=labels, a=attack: a(m, x, y),
            **({} if make is resnet18 else peers(model, images, labels)),
            "bessemer, fast": lambda m=model, x=images, y=labels, a=attack, t=through: a.run(m, x, y, through=t),
        }
        named = {f"PGD-{STEPS} / bare loop, {name}: {library}": run for library, run in runs.items()}
        found |= ratios(named, lambda m=model, x=images, y=labels: bare(m, x, y), pairs)
    return found


if __name__ == "__main__":
    for name, row in measure().items():
        print(f"{row['ratio']:6.3f}  {row['quartiles']}  {name}")
