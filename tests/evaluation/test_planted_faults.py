"""Planted faults: each raises its own doubts and no other; a sound network, trained plainly or adversarially, none."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from bessemer.attacks import PGD
from bessemer.data import load
from bessemer.errors import ModelError
from bessemer.evaluation import evaluate, suites
from bessemer.layers import balance
from bessemer.threat import Linf

THREAT = Linf(0.1)
QUICK = suites.quick(THREAT)
CHECKLIST = suites.checklist(THREAT, draws=1_000, queries=1_000)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def network(width=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def trained(digits, optimizer, model, steps, batch=None, attack=None):
    images, labels = digits.train.at(slice(None))
    draws = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = slice(None) if batch is None else torch.randint(len(images), (batch,), generator=draws)
        shown = images[rows] if attack is None else attack(model, images[rows], labels[rows], seed=step)
        optimizer.zero_grad()
        cross_entropy(model(shown), labels[rows]).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def plain(digits):
    torch.manual_seed(0)
    model = network()
    return trained(digits, torch.optim.Adam(model.parameters(), 1e-2), model, 60)


@pytest.fixture(scope="module")
def adversarial(digits):
    torch.manual_seed(0)
    model = network()
    return trained(digits, torch.optim.Adam(model.parameters(), 1e-2), model, 60, attack=PGD(THREAT, steps=5))


@pytest.fixture(scope="module")
def bang(digits):
    """As in BANG's recipes: the largest logit grows until the softmax underflows."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    with balance(model, beta=1.0, epsilon=0.84):
        return trained(digits, optimizer, model, 1_000, batch=64)


class Wrapped(nn.Module):
    def __init__(self, model, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


class Beside(nn.Module):
    """Nearly all of the answer comes from a branch that passes no gradient on; what is left points elsewhere."""

    def __init__(self, model):
        super().__init__()
        torch.manual_seed(1)
        self.detached, self.other = model, network(128)

    def forward(self, x):
        return self.detached(x.detach()) + 0.3 * self.other(x)


def staircase(x):
    return (x * 8).round() / 8


def thermometer(levels):
    """Every pixel as a column of ones up to its level (Buckman et al., 2018)."""
    return lambda x: torch.cat([(x > level / levels).float() for level in range(levels)], 1)


def doubts(model, digits, suite, images=200):
    images, labels = digits.test.at(slice(0, images))
    found = evaluate(model, (images, labels), suite, THREAT)
    return {finding.name for finding in found.findings if finding.verdict == "doubt"}


BOTH = pytest.mark.parametrize("suite", [QUICK, CHECKLIST], ids=lambda suite: suite.name)


@BOTH
def test_a_sound_network_raises_nothing(plain, adversarial, digits, suite):
    assert doubts(plain, digits, suite) == set()
    assert doubts(adversarial, digits, suite) == set()


UNDERFLOW = {"zero gradients", "the margin loss beats cross-entropy"}
NOWHERE = {"zero gradients", "noise beats the attack", "a radius of 0.5 leaves chance"}
SEARCH = "a search without gradients beats the attack"
ANY_DISTANCE = "an unbounded attack turns every image"
NEARER = "nearer than an image of another class"


@pytest.mark.parametrize(
    ("suite", "expected"), [(QUICK, UNDERFLOW), (CHECKLIST, {*UNDERFLOW, "noise beats the attack"})]
)
def test_logits_times_a_thousand(plain, digits, suite, expected):
    assert doubts(Wrapped(plain, after=lambda z: z * 1000), digits, suite) == expected


@BOTH
def test_bang_at_epsilon_0_84(bang, digits, suite):
    assert doubts(bang, digits, suite) == UNDERFLOW


@pytest.mark.parametrize(
    ("suite", "expected"), [(QUICK, NOWHERE), (CHECKLIST, {*NOWHERE, SEARCH, ANY_DISTANCE, NEARER})]
)
def test_a_staircase_at_the_input(plain, digits, suite, expected):
    assert doubts(Wrapped(plain, before=staircase), digits, suite, images=300) == expected


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        (QUICK, {"a radius of 0.5 leaves chance"}),
        (CHECKLIST, {"a radius of 0.5 leaves chance", "noise beats the attack", SEARCH, ANY_DISTANCE, NEARER}),
    ],
)
def test_a_detached_branch(plain, digits, suite, expected):
    assert doubts(Beside(plain), digits, suite) == expected


@BOTH
def test_dropout_left_on(plain, digits, suite):
    model = Wrapped(plain, before=lambda x: dropout(x, 0.3, training=True))
    assert doubts(model, digits, suite) == {"predictions repeat"}


@BOTH
def test_a_softmax_at_the_end_is_refused(plain, digits, suite):
    with pytest.raises(ModelError, match="take the softmax off its end"):
        doubts(Wrapped(plain, after=lambda z: z.softmax(1)), digits, suite)


@BOTH
def test_a_thermometer_code_is_refused(digits, suite):
    torch.manual_seed(0)
    model = Wrapped(nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 10)), before=thermometer(8))
    trained(digits, torch.optim.Adam(model.parameters(), 1e-2), model, 20)
    with pytest.raises(ModelError, match="no gradient at its images"):
        doubts(model, digits, suite)
