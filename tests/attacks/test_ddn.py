"""DDN against exact distances, its algorithm written out, and Foolbox."""

import math

import pytest
import torch
from closed_forms import (
    clipped_ray,
    digits,
    fails_cleanly,
    linear,
    size,
    small,
    stays_within_its_passes,
    wrong_to_begin_with,
)
from torch.nn.functional import cross_entropy

from bessemer.attacks.ddn import DDN
from bessemer.errors import UsageError


def test_images_in_half_the_bits_are_attacked_in_them():
    problem = linear((16,), 2, 5)
    found = DDN(steps=20)(lambda x: problem(x.float()), problem.images.bfloat16(), problem.labels)
    assert found.dtype == torch.bfloat16
    assert (problem(found.float()).argmax(1) != problem.labels).all()


SHAPES = [((16,), 1), ((1, 5, 5), 3), ((3, 8, 8), 8)]


@pytest.mark.parametrize(("shape", "count"), SHAPES)
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_is_exact_on_linear_models_of_two_classes(shape, count, loss):
    problem = linear(shape, 2, count)
    found = DDN(loss=loss)(problem, problem.images, problem.labels)
    assert (problem(found).argmax(1) != problem.labels).all()
    torch.testing.assert_close(size("L2", found - problem.images), problem.exact("L2"), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("shape", "count"), SHAPES)
@pytest.mark.parametrize("classes", [3, 10])
def test_with_more_classes_it_is_exact_to_the_class_it_ends_in(classes, shape, count):
    """The likeliest other class need not be the nearest, and the cross-entropy is drawn to several at a time."""
    problem = linear(shape, classes, count)
    found = DDN(loss="margin")(problem, problem.images, problem.labels)
    distance = size("L2", found - problem.images)
    torch.testing.assert_close(distance, problem.to_reached("L2", found), rtol=1e-3, atol=1e-7)
    assert (distance / problem.exact("L2")).median() < 1.001
    found = DDN()(problem, problem.images, problem.labels)
    assert (problem(found).argmax(1) != problem.labels).all()
    assert (size("L2", found - problem.images) / problem.exact("L2")).median() < 1.1


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_is_never_worse_than_clipping_where_the_box_cuts(classes):
    problem = linear((1, 5, 5), classes, 8, low=-0.3, high=1.3, near=0.2, far=0.8)
    found = DDN(loss="margin")(problem, problem.images, problem.labels)
    assert 0 <= found.min() <= found.max() <= 1
    assert (problem(found).argmax(1) != problem.labels).all()
    distance = size("L2", found - problem.images)
    assert (distance > 1.01 * problem.exact("L2")).any(), "the box should matter here"
    ratio = distance / clipped_ray(problem, "L2")
    if classes == 2:
        assert (ratio < 1.003).all()
    assert ratio.median() < 1.003


@pytest.mark.parametrize("targeted", [False, True])
def test_follows_its_algorithm(targeted):
    """Algorithm 1 for one image at a time in float64, and the segment at its end walked in small steps."""
    model, images, labels = small()
    target = (labels + 2) % 5 if targeted else None
    found = size("L2", DDN(steps=30)(model, images, labels, target=target) - images)
    model, images = model.double(), images.double()

    def reached(x, i):
        prediction = model(x).argmax(1)
        return prediction == target[i] if targeted else prediction != labels[i]

    for i in range(len(images)):
        x0 = images[i : i + 1]
        x, change, eps, seen = x0, torch.zeros_like(x0), 1.0, []
        for k in range(30):
            x.requires_grad_()
            wanted = (
                -cross_entropy(model(x), target[i : i + 1]) if targeted else cross_entropy(model(x), labels[i:][:1])
            )
            (gradient,) = torch.autograd.grad(wanted, x)
            x = x.detach()
            alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * k / 30)) / 2
            change = change + alpha * gradient / gradient.norm()
            eps *= 0.95 if reached(x, i) else 1.05
            x = (x0 + eps * change / change.norm()).clamp(0, 1)
            change = x - x0
            if reached(x, i):
                seen.append(x)
        best = min(seen, key=lambda x: (x - x0).norm().item())
        walk = x0 + torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None, None, None] * (best - x0)
        first = walk[reached(walk, i).nonzero()[0, 0]]
        end = (best - x0).norm().item() / 2**11
        assert found[i].item() == pytest.approx((first - x0).norm().item(), abs=1.1 * end + 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_foolbox(targeted):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: make bench installs it")
    model, images, labels = digits(60)
    target = (labels + 3) % 10 if targeted else None
    criterion = foolbox.criteria.TargetedMisclassification(target) if targeted else labels
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, theirs, fooled = foolbox.attacks.DDNAttack(steps=100)(wrapped, images, criterion, epsilons=None)
    ours = DDN()(model, images, labels, target=target)
    prediction = model(ours).argmax(1)
    assert fooled.all()
    assert (prediction == target).all() if targeted else (prediction != labels).all()
    ratio = size("L2", ours - images).median() / size("L2", theirs - images).median()
    assert 0.95 < ratio < 1.005


def test_levels_make_images_that_can_be_saved():
    model, images, labels = digits(40)
    found = DDN(levels=256)(model, images, labels)
    torch.testing.assert_close(found * 255, (found * 255).round(), rtol=0, atol=1e-4)
    assert (model(found).argmax(1) != labels).all()
    free = DDN()(model, images, labels)
    assert 0.99 < size("L2", found - images).median() / size("L2", free - images).median() < 1.03
    # so few that most of them are rounded back to where they came from
    coarse = DDN(levels=3)(model, images, labels)
    moved = (coarse != images).flatten(1).any(1)
    assert moved.any()
    assert torch.equal(coarse[moved] * 2, (coarse[moved] * 2).round())


def test_fails_without_a_nan():
    fails_cleanly(DDN())
    fails_cleanly(DDN(loss="margin", levels=256))


def test_images_misclassified_already_stay():
    wrong_to_begin_with(DDN())


@pytest.mark.parametrize("attack", [DDN(), DDN(steps=1), DDN(steps=20, levels=256)], ids=repr)
def test_stays_within_its_passes(attack):
    stays_within_its_passes(attack)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"gamma": 0.0}, {"gamma": 1.0}, {"gamma": float("nan")}, {"levels": 1}, {"loss": "hinge"}]
)
def test_refuses_what_cannot_be(wrong):
    with pytest.raises(UsageError):
        DDN(**wrong)
