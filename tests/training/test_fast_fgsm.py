"""Fast adversarial training: the single step, and whether catastrophic overfitting is seen."""

import copy
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.errors import OverfittedError, UsageError
from bessemer.randomness import subseed
from bessemer.threat import L2, Linf
from bessemer.training import FastFGSM, Plain

EPS = 0.2


class Planted(nn.Module):
    """One pixel x and two classes; the logit gap at |x - 1/2| = r is high but for a pit at half the radius."""

    def __init__(self, pit):
        super().__init__()
        self.pit, self.scale = pit, nn.Parameter(torch.ones(()))

    def forward(self, images):
        r = (images.flatten(1) - 0.5).abs() / EPS
        gap = self.scale * (1.0 - 2 * self.pit * torch.exp(-(((r - 0.5) / 0.25) ** 2)) - 0.05 * r)
        return torch.cat([gap, torch.zeros_like(gap)], 1)


def batch(iteration=9, count=60):
    images = torch.full((count, 1, 1, 1), 0.5)
    return Batch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count), seed=5, iteration=iteration)


def method(**settings):
    # so large a step ends in a corner wherever it starts, beyond the pit
    return FastFGSM(Linf(EPS), step_size=2 * EPS, check_every=10, **settings)


@pytest.fixture
def prepared():
    """Models as the method prepares them."""
    with ExitStack() as until_done:
        yield lambda method, model: method.prepare(model, until_done)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
def test_the_single_step_is_the_authors(threat):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).double()
    images = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    given = Batch(images, torch.arange(6) % 5, torch.arange(6) + 10, seed=3)
    start = threat.sample(images, subseed(given.seed, 0), given.index).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(start), given.labels), start)
    if threat.norm == "Linf":
        direction = gradient.sign()
    else:
        direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for size, settings in ((1.25 * threat.eps, {}), (0.03, {"step_size": 0.03})):
        expected = threat.project(start.detach() + size * direction, images)
        found = FastFGSM(threat, inside=Plain(label_smoothing=0.1), **settings)
        torch.testing.assert_close(found.attacked(model, given).adversarial, expected)
        loss = cross_entropy(model(expected), given.labels, label_smoothing=0.1)
        torch.testing.assert_close(found.loss(model, given), loss)


def test_the_step_grows_with_the_radius_while_that_warms_up():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    images = torch.rand(6, 1, 4, 4)
    given = Batch(images, torch.arange(6) % 5, torch.arange(6), seed=3, iteration=1)
    torch.testing.assert_close(
        FastFGSM(Linf(0.2), warmup=4).attacked(model, given).adversarial,
        FastFGSM(Linf(0.1)).attacked(model, given).adversarial,
    )


def test_the_planted_network_withstands_the_single_step_and_not_pgd():
    given = batch()
    for pit, survives in ((0.0, 1.0), (1.0, 0.0)):
        model = Planted(pit)
        once = method().single_step(model, given.images, given.labels, index=given.index)
        often = PGD(Linf(EPS), 10)(model, given.images, given.labels, index=given.index)
        assert (model(once).argmax(1) == 0).float().mean() == 1
        assert (model(often).argmax(1) == 0).float().mean() == survives


def test_overfitting_stops_training_and_says_so(prepared):
    model = prepared(method(), Planted(pit=1.0))
    for iteration in (0, 5, 8):
        method().loss(model, batch(iteration))  # no check is due
    with pytest.raises(
        OverfittedError, match=r"at iteration 9: of 60 training images 100% withstand .* but 0% PGD .*\(at best 0%"
    ):
        method().loss(model, batch(9))


def test_while_the_radius_grows_nothing_is_checked(prepared):
    growing = method(warmup=30)
    model = prepared(growing, Planted(pit=0.0))
    for iteration in (9, 19):
        growing.loss(model, batch(iteration))
        assert model.installed_fast_fgsm.best == 0
    growing.loss(model, batch(29))
    assert model.installed_fast_fgsm.best == 1


def test_a_network_that_withstands_both_is_trained_on(prepared):
    model = prepared(method(), Planted(pit=0.0))
    for iteration in (9, 19, 29):
        method().loss(model, batch(iteration)).backward()
    assert model.installed_fast_fgsm.best == 1
    assert model.installed_fast_fgsm.overfitted_at == -1
    model.pit = 1.0  # it collapses
    with pytest.raises(OverfittedError, match=r"iteration 39: .*\(at best 100% at earlier checks\); train anew"):
        method().loss(model, batch(39))


def test_a_network_that_never_withstood_much_is_not_taken_for_a_collapsed_one(prepared):
    tried = method()
    watch = prepared(tried, Planted(pit=0.0)).installed_fast_fgsm
    # LeNet on MNIST at Linf 0.3, in trials: single step, PGD-10
    for place, (single, several) in enumerate([(0.36, 0.08), (0.62, 0.27), (0.71, 0.27), (0.85, 0.28), (0.86, 0.36)]):
        assert not tried._judged(watch, place, single, several, 100)
    # it only becomes worse, under both
    assert not tried._judged(watch, 6, 0.2, 0.1, 100)
    # a small network on the digits at Linf 0.15: checks of a hundred images differ
    assert not tried._judged(watch, 6, 0.96, 0.88, 100)
    assert not tried._judged(watch, 6, 0.87, 0.66, 100)
    for single, several in ((0.86, 0.3), (0.5, 0.04)):
        with pytest.raises(OverfittedError):
            tried._judged(watch, 7, single, several, 100)


def test_training_can_go_on_with_pgd_and_remembers(prepared):
    tried = method(when_overfitting="pgd")
    model = prepared(tried, Planted(pit=1.0))
    before, after = batch(8), batch(10)
    single = tried.attacked(model, before).adversarial
    assert (model(single).argmax(1) == 0).all()
    assert (model(tried.attacked(model, batch(9)).adversarial).argmax(1) == 1).all()
    assert model.installed_fast_fgsm.overfitted_at == 9
    expected = PGD(Linf(EPS), 10)(model, after.images, after.labels, seed=after.seed, index=after.index)
    torch.testing.assert_close(tried.attacked(model, after).adversarial, expected)
    # a run that is resumed knows it from the checkpoint, also where it has begun already
    other = prepared(tried, Planted(pit=1.0))
    assert (other(tried.attacked(other, after).adversarial).argmax(1) == 0).all()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(tried.attacked(other, after).adversarial, expected)


def test_a_check_leaves_no_trace_in_the_network(prepared):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
    tried = method()
    model = prepared(tried, model)
    unchecked = copy.deepcopy(model)
    found = []
    for each, given in ((model, batch(9)), (unchecked, replace(batch(9), iteration=8))):
        torch.manual_seed(1)
        loss = tried.loss(each, given)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in each.parameters())])
        found[-1] += [buffer for name, buffer in each.named_buffers() if not name.startswith("installed_")]
        assert all(module.training for module in each.modules())
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_was_installed_is_taken_off_and_can_be_left_out():
    model = Planted(pit=1.0)
    with ExitStack() as until_done:
        method().prepare(model, until_done)
        assert "installed_fast_fgsm.overfitted_at" in model.state_dict()
    assert list(model.state_dict()) == ["scale"]
    unwatched = FastFGSM(Linf(EPS), step_size=2 * EPS, check_every=0)
    with ExitStack() as until_done:
        unwatched.loss(unwatched.prepare(model, until_done), batch(9))
        assert list(model.state_dict()) == ["scale"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"when_overfitting": "ask"}, "stop or pgd, found 'ask'"),
        ({"check_every": -1}, "check_every should be at least 1"),
        ({"check_images": 0}, "check_images at least 1"),
        ({"drop": 0.0}, "drop is a share"),
        ({"check_steps": 0}, "1 step"),
        ({"step_size": -0.1}, "step_size should be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        FastFGSM(Linf(0.1), **settings)
