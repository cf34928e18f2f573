"""One update: in parts, in lower precision, and several from one batch, each against the plain loop."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import FGSM, PGD
from bessemer.data import Batch
from bessemer.threat import Linf
from bessemer.training import SGD, Adversarial, Plain
from bessemer.training.methods import Method
from bessemer.training.update import Update


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).to(dtype)


def batch(dtype=torch.float64, n=12):
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images.to(dtype), torch.arange(n) % 3, torch.arange(n), seed=5)


def updated(method, dtype=torch.float64, **settings):
    model = network(dtype)
    loss = Update(model, method, SGD(model.parameters(), lr=0.5), **settings)(batch(dtype))
    return model, loss


@pytest.mark.parametrize(
    ("method", "parts"), [(Plain(), 2), (Plain(), 3), (Adversarial(PGD(Linf(0.1), steps=2), clean_share=0.5), 3)]
)
def test_a_batch_in_parts_makes_the_same_update(method, parts):
    whole, loss = updated(method)
    inparts, also = updated(method, accumulation=parts)
    torch.testing.assert_close(also, loss, rtol=1e-12, atol=0)
    for one, other in zip(whole.parameters(), inparts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_an_update_is_the_plain_step():
    model, loss = updated(Plain())
    naive = network()
    expected = cross_entropy(naive(batch().images), batch().labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=0)
    for one, other in zip(model.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.5 * other.grad, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_lower_precision_stays_near(precision, error):
    exact, _ = updated(Plain(), torch.float32)
    near, _ = updated(Plain(), torch.float32, precision=precision)
    start = network(torch.float32)
    for one, other, before in zip(exact.parameters(), near.parameters(), start.parameters(), strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other), f"computed in float32 after all, not in {precision}"
        assert (one - other).norm() < error * (one - before).norm()


def test_attacks_in_half_precision_find_the_gradients_of_single_precision():
    # logits so far apart that the softmax leaves gradients of 1e-10, which float16 does not know
    model = network(torch.float32)
    with torch.no_grad():
        model[-1].weight.mul_(1e-2)
        model[-1].bias.copy_(torch.tensor([0.0, 0.0, 14.0]))
    images = batch(torch.float32).images
    labels = torch.full((12,), 2)
    attack = FGSM(Linf(0.1))
    exact = attack(model, images, labels)
    with torch.autocast("cpu", torch.float16):
        half = attack(model, images, labels)
    moved = (exact != images).double().mean()
    assert moved > 0.9
    assert ((half - images).sign() == (exact - images).sign()).double().mean() > 0.95


@dataclass(frozen=True)
class Thrice(Method):
    """Three updates of each batch, whose order shows."""

    @property
    def updates(self):
        return 3

    def loss(self, model, batch):
        return cross_entropy(model(batch.images), batch.labels)

    def losses(self, model, batch):
        for factor in (1.0, 2.0, 3.0):
            yield factor * self.loss(model, batch)


def test_a_method_may_make_several_updates_of_a_batch():
    model, loss = updated(Thrice())
    naive, seen = network(), []
    for factor in (1.0, 2.0, 3.0):
        naive.zero_grad()
        value = factor * cross_entropy(naive(batch().images), batch().labels)
        value.backward()
        seen.append(value.detach())
        with torch.no_grad():
            for parameter in naive.parameters():
                parameter -= 0.5 * parameter.grad
    # momentum is 0.9 unless told otherwise
    torch.testing.assert_close(seen[0], cross_entropy(network()(batch().images), batch().labels).detach())
    without = network()
    update = Update(without, Thrice(), SGD(without.parameters(), lr=0.5, momentum=0))
    torch.testing.assert_close(update(batch()), torch.stack(seen).mean(), rtol=1e-12, atol=0)
    for one, other in zip(without.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    assert loss.isfinite()
    assert not torch.equal(model[0].weight, without[0].weight)
