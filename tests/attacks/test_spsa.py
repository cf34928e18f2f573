"""SPSA: its estimate is the gradient of a smooth function, and its steps stay in the ball."""

import numpy as np
import pytest
import torch
from torch import nn

from bessemer.attacks import Goal, Oracle, losses
from bessemer.attacks.spsa import SPSA, ask, signs
from bessemer.errors import UsageError
from bessemer.threat import L1, L2, Linf


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 5)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch(model):
    images = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2
    return images, model(images).argmax(1)


def fooled(model, images, labels):
    return model(images).argmax(1) != labels


def estimate(attack, model, images, labels, seed=0):
    goal, rows = Goal(labels), torch.arange(len(images))
    return attack.estimate(Oracle(model, images, goal), images, goal, rows, seed, rows)


@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
def test_the_estimate_points_along_the_gradient(loss, model, batch):
    """With D pixels and n directions the cosine is about sqrt(n / (n + D)): 0.98 here, 0.5 with D / 3 of them."""
    images, labels = batch
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.named(loss)(Goal(labels), model(x)).sum(), x)
    many, few = (
        nn.functional.cosine_similarity(
            estimate(SPSA(Linf(0.1), samples=samples, loss=loss), model, images, labels).flatten(1), gradient.flatten(1)
        )
        for samples in (1000, 12)
    )
    assert many.min() > 0.9
    assert few.mean() == pytest.approx(0.5, abs=0.1)
    along = estimate(SPSA(Linf(0.1), samples=1000, loss=loss), model, images, labels).mul(gradient).flatten(1).sum(1)
    assert (along / gradient.flatten(1).square().sum(1)).mean() == pytest.approx(1, abs=0.05)


def test_the_estimate_is_the_mean_of_the_formula(model, batch, monkeypatch):
    """Written out direction by direction, in chunks of another size as well."""
    images, labels = batch[0][:3].double(), batch[1][:3]
    precise = nn.Sequential(*model).double()
    attack = SPSA(Linf(0.1), samples=7, delta=0.02)
    found = estimate(attack, precise, images, labels, seed=5)
    goal, expected = Goal(labels), torch.zeros_like(images)
    for number in range(7):
        v = signs(images, 5, torch.arange(3)[:, None] * 7 + number)[:, 0]
        ahead, behind = (losses.margin(goal, precise(images + side * v)) for side in (0.02, -0.02))
        expected += ((ahead - behind) / 0.04).view(3, 1, 1, 1) * v / 7
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr("bessemer.attacks.spsa.CHUNK", 2 * images.numel())
    torch.testing.assert_close(estimate(attack, precise, images, labels, seed=5), expected)
    precise.float()


def test_signs_are_fair_and_independent():
    drawn = signs(torch.zeros(50, 3, 7), 0, torch.arange(50 * 20).view(50, 20))
    assert drawn.shape == (50, 20, 3, 7)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    flat = drawn.reshape(1000, 21)
    assert flat.mean(0).abs().max() < 0.13
    correlation = flat.T @ flat / 1000 - torch.eye(21)
    assert correlation.abs().max() < 0.15
    assert (flat @ flat.T / 21 - torch.eye(1000)).abs().max() < 1, "no two directions are the same"


@pytest.mark.parametrize(("threat", "share"), [(Linf(0.1), 0.97), (L2(0.4), 0.87)], ids=str)
def test_comes_near_the_optimum_of_a_linear_model(threat, share):
    """For L2 Adam, which moves all pixels alike, stops short: equal moves gain 0.868 of what is there."""
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0, -1.5, 0.8]])
    images = torch.full((5, 6), 0.5)
    found = SPSA(threat, steps=40, samples=64)(
        lambda x: torch.cat([x @ weight.T, -x @ weight.T], 1), images, torch.zeros(5).long()
    )
    dual = {"Linf": weight.abs().sum(), "L2": weight.norm()}[threat.norm]
    gain = ((images - found) @ weight.T)[:, 0] / (threat.eps * dual)
    assert gain.max() <= 1 + 1e-5
    assert gain.min() > share


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.3), L2(0.5, box=None)], ids=repr)
def test_what_it_returns_is_inside_ball_and_box(threat, model, batch):
    images, labels = (batch[0] * 5 - 2).clamp(0, 1), batch[1]
    found = SPSA(threat, steps=15, samples=8, learning_rate=0.05)(model, images, labels)
    threat.require(found, images, slack=1e-6)
    assert threat.size(found - images).max() > 0


def test_no_gradient_is_needed(model, batch):
    """Logits in whole steps, computed by NumPy: there is nothing to differentiate."""
    images, labels = batch

    def quantised(x):
        return torch.from_numpy(np.round(model((x * 63).round() / 63).numpy() * 64) / 64)

    outcome = SPSA(Linf(0.1), steps=20, samples=64).run(quantised, images, labels, until_success=True)
    random = fooled(quantised, Linf(0.1).sample(images, 0, torch.arange(20)), labels).sum()
    assert fooled(quantised, outcome.images, labels).sum() >= random + 8
    assert (outcome.backwards == 0).all()


def test_a_flat_loss_moves_nothing_and_is_no_nan(batch):
    images, labels = batch
    flat = SPSA(Linf(0.1), steps=3, samples=4)(
        lambda x: 3 * nn.functional.one_hot(labels[:1], 5).float().expand(len(x), -1), images, labels
    )
    assert torch.equal(flat, images)


def test_answers_that_are_not_a_number_are_passed_over(model, batch):
    """Half of the space answers NaN: no NaN reaches an image, and the other half is still climbed."""
    images, labels = batch

    def broken(x):
        return torch.where(
            (x.flatten(1)[:, :1] > images.flatten(1).repeat(100, 1)[: len(x), :1]) & (len(x) > 20), torch.nan, model(x)
        )

    found = SPSA(Linf(0.1), steps=5, samples=4)(broken, images, labels)
    assert not found.isnan().any()
    assert fooled(model, found, labels).any()


def test_splitting_a_batch_changes_nothing(model, batch):
    images, labels = batch
    attack = SPSA(Linf(0.06), steps=8, samples=16)
    whole = attack.run(model, images, labels, seed=4, until_success=True)
    pieces = [
        attack.run(model, images[cut], labels[cut], seed=4, index=torch.arange(20)[cut], until_success=True)
        for cut in (slice(0, 1), slice(1, 8), slice(8, 20))
    ]
    torch.testing.assert_close(torch.cat([piece.images for piece in pieces]), whole.images, rtol=0, atol=1e-4)
    assert torch.equal(torch.cat([piece.forwards for piece in pieces]), whole.forwards)
    assert not torch.equal(attack(model, images, labels, seed=5), attack(model, images, labels, seed=4))


def test_every_question_is_counted(model, batch):
    images, labels = batch
    attack = SPSA(Linf(0.06), steps=8, samples=16)
    assert attack.passes(5) == (8 * 33, 0)
    assert (attack.run(model, images, labels).forwards == 8 * 33).all()
    early = attack.run(model, images, labels, until_success=True)
    assert set((early.forwards % 33).tolist()) == {0}
    assert early.forwards.min() < 8 * 33
    oracle = Oracle(model, images, Goal(labels))
    rows = torch.tensor([3, 7])
    answers = ask(oracle, images[rows][:, None].expand(-1, 5, -1, -1, -1) + torch.arange(5).view(5, 1, 1, 1), rows)
    torch.testing.assert_close(answers[1, 4], model(images[7:8] + 4)[0])
    assert oracle.forwards.nonzero()[:, 0].tolist() == [3, 7]
    assert oracle.forwards[rows].tolist() == [5, 5]


def test_more_steps_never_lose(model, batch):
    images, labels = batch
    short, long = (
        losses.margin(Goal(labels), model(SPSA(Linf(0.05), steps=steps, samples=16)(model, images, labels)))
        for steps in (4, 12)
    )
    assert (long >= short).all()
    assert (long > short).any()


def test_reaches_a_target(model, batch):
    images, labels = batch
    target = (labels + 1) % 5
    found = SPSA(Linf(0.3), steps=20, samples=32, learning_rate=0.05)(model, images, labels, target=target)
    assert (model(found).argmax(1) == target).sum() >= 10


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"samples": 0}, {"delta": 0.0}, {"learning_rate": -1.0}, {"loss": "hinge"}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        SPSA(Linf(0.1), **wrong)


def test_an_l1_ball_is_refused():
    with pytest.raises(UsageError, match="Square for L1"):
        SPSA(L1(2.0))
