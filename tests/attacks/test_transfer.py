"""Searching on one model, judged on another."""

import pytest
import torch
from torch import nn

from bessemer.attacks import PGD, FGSLine, GaussianNoise
from bessemer.attacks.transfer import Transfer
from bessemer.data import load
from bessemer.errors import LabelsError
from bessemer.threat import L2, Linf


def trained(seed, digits):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images, labels = digits.train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def victim(digits):
    return trained(0, digits)


@pytest.fixture(scope="module")
def surrogate(digits):
    return trained(1, digits)


@pytest.fixture(scope="module")
def batch(digits, victim):
    images, labels = digits.test.at(slice(0, 120))
    right = victim(images).argmax(1) == labels
    return images[right], labels[right]


def fooled(model, images, labels):
    with torch.no_grad():
        return model(images).argmax(1) != labels


@pytest.mark.parametrize("threat", [Linf(0.12), L2(0.6)], ids=repr)
def test_stays_in_the_ball_and_is_weaker_than_a_direct_attack(threat, victim, surrogate, batch):
    images, labels = batch
    direct = PGD(threat, steps=10)
    across = Transfer(direct, surrogate)
    assert (across.kind, across.threat) == ("bounded", threat)
    found = across(victim, images, labels)
    assert threat.size(found - images).max() <= threat.eps + 1e-6
    there = fooled(victim, found, labels)
    here = fooled(victim, direct(victim, images, labels), labels)
    noisy = fooled(victim, threat.sample(images, 0, torch.arange(len(images))), labels)
    assert noisy.sum() < there.sum() < here.sum()


@pytest.mark.parametrize("until_success", [False, True])
def test_is_the_whole_attack_on_the_surrogate(until_success, victim, surrogate, batch):
    """Also where verdicts alone count: fooling the surrogate ends nothing."""
    images, labels = batch
    attack = PGD(Linf(0.12), steps=6, restarts=2)
    expected = attack.run(surrogate, images, labels, seed=3)
    outcome = Transfer(attack, surrogate).run(victim, images, labels, seed=3, until_success=until_success)
    assert torch.equal(outcome.images, expected.images)
    assert torch.equal(outcome.forwards, expected.forwards)
    assert torch.equal(outcome.backwards, expected.backwards)


def test_the_victim_needs_no_gradient_and_is_never_asked(surrogate, batch):
    def nobody(images):
        raise AssertionError("asked")

    Transfer(PGD(Linf(0.1), steps=2), surrogate)(nobody, *batch)


def test_a_minimal_image_that_does_not_fool_the_victim_is_the_original(victim, surrogate, batch):
    images, labels = batch
    attack = Transfer(FGSLine(), surrogate)
    outcome = attack.run(victim, images, labels)
    inside = FGSLine()(surrogate, images, labels)
    turned = fooled(victim, inside, labels)
    assert turned.any()
    assert not turned.all()
    assert torch.equal(outcome.images[turned], inside[turned])
    assert torch.equal(outcome.images[~turned], images[~turned])
    assert (outcome.forwards <= attack.passes(10)[0]).all()


def test_gives_the_surrogate_back_as_it_was(victim, digits, batch):
    surrogate = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10))
    surrogate[0].eval()
    surrogate[3].weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in surrogate.state_dict().items()}
    modes = [module.training for module in surrogate.modules()]
    random = torch.get_rng_state()
    attack = Transfer(PGD(Linf(0.1), steps=2), surrogate)
    one, two = attack(victim, *batch), attack(victim, *batch)
    with pytest.raises(LabelsError):
        attack(victim, batch[0], batch[1] + 10)
    assert torch.equal(one, two), "attacked in evaluation mode"
    assert [module.training for module in surrogate.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in surrogate.state_dict().items())
    assert [p.requires_grad for p in surrogate.parameters()] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), random)


def test_zero_gradients_of_the_surrogate_are_told(victim, batch):
    images, labels = batch

    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * 0

    outcome = Transfer(PGD(Linf(0.1), steps=3, random_start=False), Flat()).run(
        victim, images, labels, until_success=True
    )
    assert outcome.zero_gradients.tolist() == [3] * len(images)
    assert outcome.zero_in_float64.isnan().all()


def test_is_a_value_whose_text_is_short(surrogate):
    attack = Transfer(GaussianNoise(0.1), surrogate)
    assert repr(attack) == "Transfer(GaussianNoise(std=0.1, draws=1, threat=None), model=Sequential)"
    assert attack == Transfer(GaussianNoise(0.1), surrogate)
    assert attack != Transfer(GaussianNoise(0.1), nn.Sequential())
    assert attack.kind == "random"
    assert attack.threat is None
