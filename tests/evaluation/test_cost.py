"""What an evaluation costs, what fits into a time, and how many images fit into memory."""

import time

import pytest
import torch
from torch import nn

from bessemer.attacks import FGSM, PGD
from bessemer.errors import UsageError
from bessemer.evaluation import Suite, evaluate
from bessemer.evaluation.cost import Cost, estimate
from bessemer.evaluation.memory import batch_size
from bessemer.threat import Linf

SUITE = Suite("s", {"FGSM": FGSM(Linf(0.1)), "PGD": PGD(Linf(0.1), steps=9)})


class Slow(nn.Module):
    """Takes two milliseconds an image, forwards."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x):
        time.sleep(0.002 * len(x))
        return self.linear(x.flatten(1))


def images(count=20):
    return torch.rand(count, 1, 4, 4), torch.zeros(count, dtype=torch.int64)


def test_an_estimate_is_passes_times_time():
    """FGSM asks for at most 3 forward passes, PGD-9 for 11; and three are the judge's."""
    forwards = sum(attack.passes(3)[0] for attack in SUITE.attacks.values()) + 3
    cost = estimate(Slow(), SUITE, *images())
    assert cost.forward == pytest.approx(0.002, rel=0.5)
    assert cost.per_image == pytest.approx(0.002 * forwards, rel=0.5)


def test_so_many_images_are_judged_as_fit():
    said = []
    model = Slow()
    pair = images(400)[0], model(images(400)[0]).argmax(1)
    found = evaluate(model, pair, SUITE, budget=1.0, say=said.append)
    assert 1 <= len(found) < 100
    assert "of 400 images" in said[0]
    assert evaluate(model, pair, SUITE, samples=5, budget=600.0).provenance["samples"] == 5


def test_a_budget_for_no_image_is_refused():
    with pytest.raises(UsageError, match="one image may take 3 s"):
        Cost(0.1, 0.1, 3.0).images_within(2.0)
    with pytest.raises(UsageError, match="budget should be some seconds"):
        evaluate(Slow(), images(), SUITE, budget=0.0)


def test_batches_are_as_large_as_memory_holds():
    """A network that keeps 2 x 64 MiB an image for its gradient: half a GiB holds four of those, twice over two."""

    class Hungry(nn.Module):
        def forward(self, x):
            wide = x.flatten(1)[:, :1].expand(-1, 2**24).exp()  # 64 MiB, kept for the backward pass
            return torch.stack([wide.sum(1), wide.sum(1)], 1)

    small = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    assert batch_size(small, images()[0]) == 500
    assert batch_size(Hungry(), images()[0]) == 4
