"""Planted faults: each raises its own findings and no other; a plain network raises none."""

import pytest
import torch
from torch import nn

from bessemer.data import load
from bessemer.evaluation import evaluate
from bessemer.threat import Linf


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def plain(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    images, labels = digits.train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


class Wrapped(nn.Module):
    def __init__(self, model, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def doubts(model, digits, suite="quick"):
    found = evaluate(model, digits, suite, Linf(0.1), samples=200)
    return {finding.name for finding in found.findings if finding.verdict == "doubt"}


def test_a_plain_network_raises_nothing(plain, digits):
    assert doubts(plain, digits) == set()
    assert doubts(plain, digits, "bang") == set()


def test_logits_times_a_thousand_underflow(plain, digits):
    model = Wrapped(plain, after=lambda z: z * 1000)
    assert doubts(model, digits) == {"zero gradients", "the margin loss beats cross-entropy"}
    assert doubts(model, digits, "bang") == {
        "zero gradients", "the margin loss beats cross-entropy", "logits beat the loss",
    }  # fmt: skip


def test_float64_tells_underflow_from_a_network_without_gradients(plain, digits):
    loud = Wrapped(plain, after=lambda z: z * 20)
    found = evaluate(loud, digits, "quick", Linf(0.1), samples=200)
    assert found.zero_gradient_share("FGSM").value > 0.05
    assert found.zero_in_float64_share("FGSM").value == 0


def test_a_staircase_at_the_input_has_no_gradient_anywhere(plain, digits):
    found = evaluate(Wrapped(plain, before=lambda x: (x * 8).round() / 8), digits, "quick", Linf(0.1), samples=200)
    named = {finding.name for finding in found.findings if finding.verdict == "doubt"}
    assert named == {"zero gradients", "a radius of 0.5 leaves chance", "noise beats the attack"}
    assert found.zero_in_float64_share("FGSM").value == 1


def test_a_random_model_is_noticed(plain, digits):
    model = Wrapped(plain, before=lambda x: x + 0.3 * torch.randn_like(x))
    assert "predictions repeat" in doubts(model, digits)


def test_a_network_that_is_right_about_grey_for_one_class_is_not_doubted(digits):
    """With two classes, half of the images survive any attack when grey is answered with one of them."""
    torch.manual_seed(0)
    images, labels = digits.test.at(slice(0, 200))
    labels = (labels >= 5).long()

    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.stack([self.one * 0 + 1 + 0 * x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    found = evaluate(Grey(), (images, labels), "quick", Linf(0.1))
    finding = next(finding for finding in found.findings if finding.name == "a radius of 0.5 leaves chance")
    assert finding.verdict == "trust"


def test_where_nothing_is_left_more_steps_are_not_advised(plain, digits):
    found = evaluate(plain, digits, "quick", Linf(0.8), samples=100)
    assert found.worst_case().count == 0
    assert all(f.verdict == "trust" for f in found.findings if f.name == "still climbing at the end")


def test_float64_is_not_spoken_of_where_it_was_not_asked(plain, digits):
    found = evaluate(lambda x: plain(x) * 1000, digits, "quick", Linf(0.1), samples=100)
    text = next(finding.figure for finding in found.findings if finding.name == "zero gradients")
    assert "float64 could not be asked" in text
