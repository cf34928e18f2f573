"""The losses of attacks against their formulas, written naively and in float64."""

import math

import pytest
import torch
from torch import nn

from bessemer.attacks import PGD, Goal, losses
from bessemer.errors import UsageError
from bessemer.threat import Linf

LOSSES = [losses.cross_entropy, losses.margin, losses.dlr]


def random_logits(count=40, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(count, classes, generator=generator, dtype=torch.float64)


def goals(logits):
    """Labels of every rank and targets of every rank but the labels', with each order of the two."""
    count, classes = logits.shape
    labels = torch.arange(count) % classes
    return Goal(labels), Goal(labels, (labels + 1 + torch.arange(count) % (classes - 1)) % classes)


def naive(loss, z, y, t):
    """One image: a list of logits, its label and its target or None."""
    ordered = sorted(z, reverse=True)
    wanted = y if t is None else t
    if loss is losses.cross_entropy:
        value = math.log(sum(math.exp(each) for each in z)) - z[wanted]
        return value if t is None else -value
    if loss is losses.margin:
        lead = z[wanted] - max(each for k, each in enumerate(z) if k != wanted)
        return -lead if t is None else lead
    if t is None:
        return -(z[y] - max(each for k, each in enumerate(z) if k != y)) / (ordered[0] - ordered[2])
    return -(z[y] - z[t]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [4, 6, 11])
def test_a_loss_is_its_formula(loss, classes):
    logits = random_logits(44, classes)
    for goal in goals(logits):
        targets = [None] * 44 if goal.target is None else goal.target.tolist()
        expected = [
            naive(loss, z, y, t) for z, y, t in zip(logits.tolist(), goal.labels.tolist(), targets, strict=True)
        ]
        torch.testing.assert_close(loss(goal, logits), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_gradient_is_the_finite_difference(loss):
    logits = random_logits(12)
    for goal in goals(logits):
        z = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(goal, z).sum(), z)
        for k in range(6):
            step = torch.zeros(6, dtype=torch.float64)
            step[k] = 1e-6
            difference = (loss(goal, logits + step) - loss(goal, logits - step)) / 2e-6
            torch.testing.assert_close(gradient[:, k], difference, rtol=1e-6, atol=1e-8)


def test_dlr_sees_neither_scale_nor_shift():
    logits = random_logits()
    for goal in goals(logits):
        torch.testing.assert_close(losses.dlr(goal, 1000 * logits - 37), losses.dlr(goal, logits))
        torch.testing.assert_close(losses.dlr(goal, logits / 1000 + 2), losses.dlr(goal, logits), rtol=1e-6, atol=0)
        assert not torch.allclose(losses.margin(goal, 2 * logits), losses.margin(goal, logits))


def test_dlr_is_at_least_minus_1_and_positive_exactly_where_the_image_is_wrong():
    logits = random_logits(400)
    goal, _ = goals(logits)
    values = losses.dlr(goal, logits)
    assert values.min() >= -1
    assert torch.equal(values > 0, goal.reached(logits))
    assert 0 < goal.reached(logits).sum() < 400


def test_a_targeted_dlr_knows_its_label():
    """Unlike the other two, it pushes the true class down rather than the strongest rival of the target."""
    logits = torch.tensor([[3.0, 0.0, 2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.dlr(Goal(torch.tensor([2]), torch.tensor([1])), logits).sum(), logits)
    assert gradient[0, 2] < 0 < gradient[0, 1]


@pytest.mark.parametrize(("classes", "targeted"), [(2, False), (2, True), (3, True)])
def test_dlr_with_too_few_classes_is_the_margin_and_says_so(classes, targeted):
    logits = random_logits(20, classes)
    goal = goals(logits)[targeted]
    assert torch.equal(losses.dlr(goal, logits), losses.margin(goal, logits))
    (remark,) = losses.remarks("dlr", classes, targeted)
    kind = "targeted DLR needs 4 classes" if targeted else "DLR needs 3 classes"
    assert remark == f"{kind}, the model has {classes}: the margin loss took its place"
    assert losses.remarks(losses.dlr, classes, targeted) == [remark]


def test_dlr_with_just_enough_classes_is_dlr():
    for classes, targeted in ((3, False), (4, True)):
        logits = random_logits(20, classes)
        goal = goals(logits)[targeted]
        torch.testing.assert_close(losses.dlr(goal, 2 * logits), losses.dlr(goal, logits))
        assert not torch.allclose(losses.dlr(goal, logits), losses.margin(goal, logits))
        assert losses.remarks("dlr", classes, targeted) == []


def test_other_losses_have_nothing_to_remark():
    assert losses.remarks("cross-entropy", 2) == losses.remarks("margin", 2, targeted=True) == []
    assert losses.remarks(lambda goal, logits: logits[:, 0], 2) == []


def test_equal_logits_are_no_nan():
    logits = torch.zeros(3, 5, requires_grad=True)
    for goal in goals(logits.detach()):
        for loss in LOSSES:
            value = loss(goal, logits)
            assert value.isfinite().all()
            assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_where_cross_entropy_underflows_the_others_do_not():
    logits = torch.tensor([[200.0, 50.0, 0.0, -10.0]], requires_grad=True)
    for goal in (Goal(torch.tensor([0])), Goal(torch.tensor([0]), torch.tensor([1]))):
        slopes = [torch.autograd.grad(loss(goal, logits).sum(), logits)[0].abs().max().item() for loss in LOSSES]
        assert (slopes[0] == 0) == (goal.target is None)
        assert min(slopes[1:]) > 1e-3


def test_a_loss_has_a_name_or_is_a_function():
    assert losses.named("cross-entropy") is losses.cross_entropy
    assert losses.named("margin") is losses.margin
    assert losses.named("dlr") is losses.dlr
    assert losses.named(naive) is naive
    with pytest.raises(UsageError, match="did you mean 'margin'"):
        losses.named("margins")
    with pytest.raises(UsageError, match="a name or a function .* not float"):
        losses.named(0.5)


def test_pgd_climbs_a_loss_of_your_own():
    """The one that raises the mean of the last class ends where that class's gradient points."""
    torch.manual_seed(0)
    model = nn.Linear(9, 5)
    images, labels = torch.rand(6, 9), torch.arange(6) % 5
    seen = []

    def last_class(goal, logits):
        seen.append(goal)
        return logits[:, 4]

    found = PGD(Linf(0.05), steps=8, loss=last_class)(model, images, labels)
    expected = (images + 0.05 * model.weight[4].sign()).clamp(0, 1)
    wrong = (model(expected).argmax(1) != labels) | (model(found).argmax(1) == labels)
    assert wrong.any(), "misclassified points come first, whatever the loss"
    torch.testing.assert_close(found[wrong], expected[wrong].detach(), rtol=0, atol=1e-6)
    assert all(torch.equal(goal.labels, labels) for goal in seen)
