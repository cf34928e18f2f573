"""A step of adversarial training beside the textbook's loop, and in bfloat16 beside float32."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.models import PreActResNet
from bessemer.threat import Linf
from bessemer.training import SGD, Adversarial
from bessemer.training.update import Update

EPS, SIZE = 0.1, 0.03


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 3)
    ).double()


def batch():
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images, torch.arange(12) % 3, torch.arange(12), seed=5)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_on_the_last_point_is_the_textbooks(steps):
    model, images, labels = network(), batch().images, batch().labels
    method = Adversarial(PGD(Linf(EPS), steps, SIZE, random_start=False, last=True))
    update = Update(model.train(), method, SGD(model.parameters(), lr=0.5))
    naive = network()
    for seed in (1, 2):
        naive.eval()
        x = images
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(naive(x), labels, reduction="sum"), x)
            x = (x + SIZE * gradient.sign()).clamp(images - EPS, images + EPS).clamp(0, 1).detach()
        naive.train()
        naive.zero_grad()
        torch.manual_seed(seed)  # of the dropout
        expected = cross_entropy(naive(x), labels)
        expected.backward()
        torch.manual_seed(seed)
        torch.testing.assert_close(update(batch()), expected.detach(), rtol=1e-12, atol=0)
        with torch.no_grad():
            for one, other in zip(model.parameters(), naive.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-13)
                other.copy_(one)  # ours has momentum
    for one, other in zip(model.buffers(), naive.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_an_attack_in_bfloat16_and_channels_last_climbs_as_far_as_one_in_float32():
    torch.manual_seed(0)
    model = PreActResNet(width=4)
    images, labels = torch.rand(64, 3, 32, 32), torch.arange(64) % 10
    model(images)  # moves the running statistics to where training has them
    model.eval()
    laid_out = PreActResNet(width=4).to(memory_format=torch.channels_last)
    laid_out.load_state_dict(model.state_dict())
    attack = PGD(Linf(8 / 255), steps=3, last=True)
    exact = attack(model, images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        near = attack(laid_out.eval(), images, labels)
    with torch.no_grad():
        clean, reached, also = (cross_entropy(model(x), labels) for x in (images, exact, near))
    assert reached > clean + 0.05
    assert also - clean > 0.95 * (reached - clean)
