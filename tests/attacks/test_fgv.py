"""The fast gradient value against its definition: the exact place on its ray, and every scale tried naively."""

import pytest
import torch
from closed_forms import (
    digits,
    fails_cleanly,
    linear,
    size,
    small,
    stays_within_its_passes,
    wrong_to_begin_with,
)
from torch.nn.functional import cross_entropy

from bessemer.attacks.fgv import FGV
from bessemer.errors import UsageError


def direction(model, images, labels):
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
    return gradient / gradient.flatten(1).abs().amax(1).view(-1, *[1] * (x.dim() - 1))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(("shape", "count"), [((16,), 1), ((1, 5, 5), 3), ((3, 8, 8), 8)])
def test_is_as_near_as_whole_grey_levels_allow_on_linear_models(classes, shape, count):
    """Rounding moves a pixel by half a level at most, and the margin by no more than that along its weights."""
    problem = linear(shape, classes, count)
    ray = direction(problem, problem.images, problem.labels)
    found = FGV()(problem, problem.images, problem.labels)
    torch.testing.assert_close(found * 255, (found * 255).round(), rtol=0, atol=1e-4)
    assert (problem(found).argmax(1) != problem.labels).all()
    for i, label in enumerate(problem.labels.tolist()):
        scale, slack = float("inf"), 0.0
        for other in range(classes):
            weight = problem.weight[other] - problem.weight[label]
            slope = (weight @ ray[i].flatten()).item()
            if other != label and slope > 0:
                lead = problem(problem.images[i : i + 1])[0, label] - problem(problem.images[i : i + 1])[0, other]
                scale, slack = min((scale, slack), (lead.item() / slope, weight.abs().sum().item() / 2 / 255 / slope))
        length = ray[i].norm().item()
        allowed = slack * length + 0.5 * ray[i].numel() ** 0.5 / 255
        distance = size("L2", (found - problem.images)[i : i + 1]).item()
        assert scale * length - allowed <= distance <= scale * length + allowed + 1e-6
        if classes == 2:
            # float32 rounds 1 − p away where p, the softmax, is nearly 1: the direction is good to a per cent only
            assert scale * length == pytest.approx(problem.exact("L2")[i].item(), rel=1e-2)


def test_finds_the_nearest_grey_levels_on_its_ray():
    """A tenth of a scale less, and the image is right again: found by trying every scale naively."""
    model, images, labels = small()
    ray = direction(model, images, labels)
    found = FGV()(model, images, labels)
    compared = 0
    for i, label in enumerate(labels):
        scales = torch.arange(0, 600, 0.02)[:, None, None, None]
        points = ((images[i] * 255).round() + scales * ray[i]).round().clamp(0, 255) / 255
        wrong = model(points).argmax(1) != label
        first = points[wrong.nonzero()[0, 0]]
        # bisection after doubling may settle on a later crossing, never on a nearer image than the first
        assert size("L2", (found - images)[i : i + 1]) >= size("L2", (first - images[i])[None]) - 1e-6
        if (wrong[1:] & ~wrong[:-1]).sum() == 1:
            torch.testing.assert_close(found[i], first, rtol=0, atol=1.01 / 255)
            compared += 1
    assert compared >= 8


def test_stays_in_the_box_and_reaches_what_lies_beyond_it():
    """Half of the pixels start at an end of the box and cannot follow the gradient."""
    problem = linear((1, 5, 5), 2, 8, low=-0.3, high=1.3, near=0.2, far=0.8)
    found = FGV()(problem, problem.images, problem.labels)
    assert 0 <= found.min() <= found.max() <= 1
    assert (problem(found).argmax(1) != problem.labels).all()


def test_reaches_a_target():
    model, images, labels = digits(40)
    target = (labels + 3) % 10
    found = FGV()(model, images, labels, target=target)
    reached = model(found).argmax(1) == target
    assert reached.float().mean() > 0.8
    assert torch.equal(found[~reached], images[~reached])


def test_the_value_changes_less_than_the_sign():
    """The point of the paper: at the first misclassification the derivative has moved pixels by less (L2) than FGS."""
    from bessemer.attacks import FGSLine

    model, images, labels = digits(40)
    value, sign = FGV()(model, images, labels), FGSLine()(model, images, labels)
    assert (model(value).argmax(1) != labels).all()
    assert size("L2", value - images).median() < 0.9 * size("L2", sign - images).median()


def test_a_margin_gives_a_direction_where_the_softmax_underflows():
    def model(x):
        return 1000 * torch.cat([x.flatten(1).mean(1, keepdim=True), 0.4 - x.flatten(1).mean(1, keepdim=True)], 1)

    images, labels = torch.full((2, 1, 2, 2), 204 / 255), torch.zeros(2).long()
    outcome = FGV().run(model, images, labels, until_success=True)
    assert outcome.zero_gradients.tolist() == [1, 1]
    assert torch.equal(outcome.images, images)
    found = FGV(loss="margin")(model, images, labels)
    torch.testing.assert_close(found, torch.full_like(found, 50 / 255))


def test_fails_without_a_nan():
    fails_cleanly(FGV())


def test_images_misclassified_already_stay():
    wrong_to_begin_with(FGV())


@pytest.mark.parametrize("attack", [FGV(), FGV(loss="margin")], ids=repr)
def test_stays_within_its_passes(attack):
    stays_within_its_passes(attack)


def test_refuses_what_cannot_be():
    with pytest.raises(UsageError, match="hinge"):
        FGV(loss="hinge")
