"""Our loop over one by hand, the same LeNet steps (targets: 1.05 in the same layout, below 1 in ours)."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from bessemer.data import Batches, Split
from bessemer.models import LeNet
from bessemer.training import SGD, Factor, Plain, fit, parameter_groups
from bessemer.training.schedules import Inv
from timing import ratios

STEPS = 40
BATCH = 64


def lenet(channels_last: bool) -> LeNet:
    """The same LeNet each time."""
    torch.manual_seed(0)
    return LeNet().to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def by_hand(images: torch.Tensor, labels: torch.Tensor, model: LeNet) -> None:
    """What a user of plain PyTorch writes."""
    model.train()
    groups = [
        {"params": [p for name, p in model.named_parameters() if name.endswith("weight")], "lr": 0.01},
        {"params": [p for name, p in model.named_parameters() if name.endswith("bias")], "lr": 0.02},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda it: (1 + 1e-4 * it) ** -0.75)
    total = 0.0
    for it in range(STEPS):
        start = it * BATCH % (len(labels) - BATCH)
        x, y = images[start : start + BATCH].float() / 255, labels[start : start + BATCH]
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()


def ours(split: Split, model: LeNet) -> None:
    """The same with Bessemer."""
    optimizer = SGD(parameter_groups(model, [Factor("*.bias", lr=2.0)]), 0.01, 0.9, 5e-4)
    losses = []
    fit(
        model, Batches(split, BATCH, shuffle=False), Plain(), optimizer, Inv(), 0.01, STEPS,
        lambda done, loss: losses.append(loss) is None,
    )  # fmt: skip


def measure() -> dict[str, dict]:
    """Ratios in both layouts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8000, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (8000,), generator=generator)
    split, plain = Split(images, labels), lenet(False)
    found = {}
    for name, layout in (("in the same layout", False), ("in the default layout", True)):
        model = lenet(layout)
        found |= ratios(
            {f"training loop / loop by hand, LeNet, {name}": lambda m=model: ours(split, m)},
            lambda: by_hand(images, labels, plain),
        )
    return found
