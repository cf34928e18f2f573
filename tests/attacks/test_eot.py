"""Averages over a model's own randomness, against the expectation worked out by hand."""

import pytest
import torch
from torch import nn

from bessemer.attacks import FGSM, PGD, FGSLine, Goal, HotCold, Oracle
from bessemer.attacks.attack import borrowed
from bessemer.attacks.eot import EOT, _Average
from bessemer.attacks.losses import cross_entropy, margin
from bessemer.errors import UsageError
from bessemer.threat import L2, Linf

WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.5, 1.0, -1.0, 0.0], [-1.0, 0.5, 2.0, -1.0]])


def shaky(images):
    """Logits B W x, with B = 3 once in four calls and B = 1 else: on average 1.5 W x."""
    factor = torch.where(torch.rand(()) < 0.25, 3.0, 1.0)
    return factor * images.flatten(1) @ WEIGHT.T


IMAGES = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = (IMAGES.flatten(1) @ WEIGHT.T).argmax(1)


def test_the_averages_are_the_expectations():
    def loss(goal, logits):
        return logits[:, 0].square()  # so that the mean of the losses is not the loss of the mean

    samples = 1000
    with borrowed(shaky, IMAGES.device, 0):
        oracle = Oracle(shaky, IMAGES, Goal(LABELS))
        average = _Average(oracle, samples)
        gradient, logits, values = average.gradient(IMAGES, loss)
        jacobian, _ = average.jacobian(IMAGES)
    score = IMAGES.flatten(1) @ WEIGHT[0]
    second = (3 * 1 + 9) / 4  # E[B²]
    torch.testing.assert_close(logits, 1.5 * IMAGES.flatten(1) @ WEIGHT.T, rtol=0.08, atol=1e-3)
    torch.testing.assert_close(values, second * score.square(), rtol=0.15, atol=1e-3)
    expected = 2 * second * score[:, None] * WEIGHT[0]
    torch.testing.assert_close(gradient.flatten(1), expected, rtol=0.15, atol=1e-3)
    torch.testing.assert_close(jacobian.flatten(2)[0], 1.5 * WEIGHT, rtol=0.08, atol=1e-3)
    assert oracle.forwards.tolist() == [2 * samples] * 6
    assert oracle.backwards.tolist() == [4 * samples] * 6


def test_the_gradient_is_the_mean_of_the_single_gradients():
    """Draw for draw, with the losses and goals that attacks use."""
    goal = Goal(LABELS, (LABELS + 1) % 3).at(torch.arange(4))
    for loss in (cross_entropy, margin):
        with borrowed(shaky, IMAGES.device, 5):
            found = _Average(Oracle(shaky, IMAGES, Goal(LABELS)), 7).gradient(IMAGES[:4], loss, torch.arange(4), goal)
        with borrowed(shaky, IMAGES.device, 5):
            singles = [Oracle(shaky, IMAGES[:4], goal).gradient(IMAGES[:4], loss) for _ in range(7)]
        for ours, each in zip(found, zip(*singles, strict=True), strict=True):
            torch.testing.assert_close(ours, torch.stack(each).mean(0))


class Dropped(nn.Module):
    """Fixed random masks half of the time: single gradients look at half of the weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 2)

    def forward(self, x):
        keep = (torch.rand(x.shape[0], 64, device=x.device) < 0.1).float()
        return self.linear(x.flatten(1) * keep * 10)


def test_one_averaged_step_goes_where_the_expectation_goes():
    """The dual norm's step against the mean weights: one draw sees a tenth of them, 200 draws see them all."""
    model = Dropped()
    images = torch.full((12, 1, 8, 8), 0.5)
    labels = torch.zeros(12).long()
    weight = (model.linear.weight[1] - model.linear.weight[0]).detach()
    best = weight.abs().sum()

    def gain(attack):
        change = (attack(model, images, labels) - images).flatten(1) / 0.1
        return (change @ weight / best).mean().item()

    direct = FGSM(
        Linf(0.1),
    )
    once = gain(direct)
    averaged = gain(EOT(direct, samples=200))
    assert once < 0.6
    assert averaged > 0.9


def test_success_is_that_of_the_average():
    """A model that is wrong once in ten calls, whatever it is shown, is not fooled."""

    def moody(images):
        wrong = (torch.rand(len(images), 1) < 0.1).float()
        right = 2.0 + 0 * images.flatten(1)[:, :1]
        return torch.cat([right * (1 - wrong), right * wrong], 1)

    images, labels = torch.rand(50, 1, 2, 2), torch.zeros(50).long()
    with borrowed(moody, images.device, 0):
        average = _Average(Oracle(moody, images, Goal(labels)), 60)
        assert not average.reached(images, average.logits(images)).any()
        single = Oracle(moody, images, Goal(labels))
        assert single.reached(images, single.logits(images)).any()


def test_a_stand_in_is_confirmed_by_the_average_of_the_model_itself():
    calls = {"model": 0, "copy": 0}

    def model(images):
        calls["model"] += 1
        # wrong at every other call, but right by more
        return torch.tensor([[5.0, 0.0]] if calls["model"] % 2 else [[0.0, 2.0]]) + 0 * images.flatten(1)[:, :2]

    def copy(images):
        calls["copy"] += 1
        return torch.tensor([[0.0, 2.0]]) + 0 * images.flatten(1)[:, :2]

    oracle = Oracle(model, IMAGES, Goal(torch.zeros(6).long()), through=copy)
    average = _Average(oracle, 4)
    logits = average.logits(IMAGES)
    assert calls == {"model": 0, "copy": 4}
    assert not average.reached(IMAGES, logits).any()
    assert calls == {"model": 4, "copy": 4}
    assert oracle.verifications.tolist() == [4] * 6


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).eval()


@pytest.fixture(scope="module")
def batch(network):
    images = (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    return images, network(images).argmax(1)


@pytest.mark.parametrize("attack", [PGD(L2(0.3), steps=5, restarts=2), FGSLine(), HotCold()], ids=repr)
def test_a_model_without_randomness_is_attacked_as_ever(attack, network, batch):
    plain, averaged = (a.run(network, *batch, until_success=True) for a in (attack, EOT(attack, samples=4)))
    torch.testing.assert_close(averaged.images, plain.images)
    assert torch.equal(averaged.forwards, 4 * plain.forwards)
    assert torch.equal(averaged.backwards, 4 * plain.backwards)
    forwards, backwards = attack.passes(5)
    assert EOT(attack, samples=4).passes(5) == (4 * forwards, 4 * backwards)
    assert (EOT(attack).kind, EOT(attack).threat) == (attack.kind, getattr(attack, "threat", None))


def test_repeats_with_its_seed():
    model = Dropped()
    attack = EOT(PGD(Linf(0.1), steps=3), samples=3)
    images, labels = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4).long()
    assert torch.equal(attack(model, images, labels, seed=1), attack(model, images, labels, seed=1))
    assert not torch.equal(attack(model, images, labels, seed=1), attack(model, images, labels, seed=2))


def test_at_least_one_sample():
    with pytest.raises(UsageError, match="at least 1 sample"):
        EOT(FGSM(Linf(0.1)), samples=0)
