"""Carlini and Wagner's attack against exact distances, torch's own Adam on its objective, and two other libraries."""

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

from bessemer.attacks.carlini_wagner import CarliniWagner
from bessemer.errors import UsageError

QUICK = CarliniWagner(steps=250, binary_steps=5, learning_rate=0.02, initial_constant=0.1)


@pytest.mark.parametrize(
    ("shape", "classes", "count"),
    [((16,), 2, 1), ((1, 5, 5), 3, 3), ((3, 8, 8), 2, 8), ((3, 8, 8), 3, 8), ((1, 5, 5), 10, 8)],
)
def test_is_nearly_exact_on_linear_models(shape, classes, count):
    """To the class it ends in, which is that of the highest logit on the way, and seldom not the nearest."""
    problem = linear(shape, classes, count, low=0.35, high=0.65, near=0.1)
    found = QUICK(problem, problem.images, problem.labels)
    assert (problem(found).argmax(1) != problem.labels).all()
    distance = size("L2", found - problem.images)
    assert (distance >= problem.exact("L2") * (1 - 1e-5)).all()
    assert (distance < 1.05 * problem.to_reached("L2", found)).all()
    assert (distance / problem.exact("L2")).median() < 1.02


def test_is_hardly_worse_than_clipping_where_the_box_cuts():
    problem = linear((1, 5, 5), 3, 8, low=-0.1, high=1.1, near=0.2, far=0.8)
    found = QUICK(problem, problem.images, problem.labels)
    assert 0 <= found.min() <= found.max() <= 1
    assert (problem(found).argmax(1) != problem.labels).all()
    distance = size("L2", found - problem.images)
    assert (distance > 1.01 * problem.exact("L2")).any(), "the box should matter here"
    assert (distance / clipped_ray(problem, "L2")).median() < 1.05


@pytest.mark.parametrize("targeted", [False, True])
def test_follows_its_objective(targeted):
    """The objective as printed, minimised one image at a time by torch's Adam through the tanh, same search for c."""
    settings = {"steps": 30, "binary_steps": 3, "learning_rate": 0.05, "initial_constant": 0.3}
    model, images, labels = small()
    target = (labels + 2) % 5 if targeted else None
    found = CarliniWagner(**settings)(model, images, labels, target=target)
    prediction = model(found).argmax(1)
    model, originals = model.double(), images.double()
    expected = originals.clone()
    for i, label in enumerate(labels.tolist()):
        x0, c, low, high, best = originals[i : i + 1], 0.3, 0.0, float("inf"), float("inf")
        for _ in range(3):
            w = torch.atanh(0.999999 * (2 * x0 - 1)).requires_grad_()
            optimizer = torch.optim.Adam([w], lr=0.05)
            worked, before = False, float("inf")
            for step in range(30):
                x = (torch.tanh(w) + 1) / 2
                z = model(x)[0]
                wanted = target[i] if targeted else label
                others = torch.cat([z[:wanted], z[wanted + 1 :]]).max()
                lag = others - z[wanted] if targeted else z[label] - others
                objective = (x - x0).square().sum() + c * lag.clamp_min(0)
                distance = (x - x0).norm().item()
                if lag < 0:
                    worked = True
                    if distance < best:
                        best, expected[i] = distance, x.detach()[0]
                if step % 3 == 2:
                    if not objective.item() < 0.9999 * before:
                        break
                    before = objective.item()
                optimizer.zero_grad()
                objective.backward()
                optimizer.step()
            low, high = (low, c) if worked else (c, high)
            c = 10 * c if high == float("inf") else (low + high) / 2
    moved = (expected != originals).flatten(1).any(1)
    assert moved.sum() >= 8
    assert torch.equal(prediction == target if targeted else prediction != labels, moved)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("targeted", [False, True])
def test_keeps_the_lead_it_is_asked_for(targeted):
    model, images, labels = digits(10)
    target = (labels + 3) % 10 if targeted else None
    attack = CarliniWagner(steps=100, binary_steps=5, learning_rate=0.05, initial_constant=0.1, confidence=2.0)
    found = attack(model, images, labels, target=target)
    moved = (found != images).flatten(1).any(1)
    assert moved.sum() >= 8
    logits = model(found)[moved]
    wanted = (target if targeted else labels)[moved, None]
    own, other = logits.gather(1, wanted)[:, 0], logits.scatter(1, wanted, -torch.inf).amax(1)
    lead = own - other if targeted else other - own
    assert (lead >= 2 - 1e-4).all()
    assert lead.median() < 2.5, "more than was asked for costs distance"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_foolbox(targeted):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: make bench installs it")
    model, images, labels = digits(12)
    target = (labels + 3) % 10 if targeted else None
    criterion = foolbox.criteria.TargetedMisclassification(target) if targeted else labels
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    settings = {"steps": 250, "initial_const": 0.1, "binary_search_steps": 5, "stepsize": 0.02}
    attack = foolbox.attacks.L2CarliniWagnerAttack(**settings)
    _, theirs, fooled = attack(wrapped, images, criterion, epsilons=None)
    ours = QUICK(model, images, labels, target=target)
    prediction = model(ours).argmax(1)
    assert fooled.all()
    assert (prediction == target).all() if targeted else (prediction != labels).all()
    ratio = size("L2", ours - images) / size("L2", theirs - images)
    assert 0.98 < ratio.median() < 1.02
    assert ((ratio - 1).abs() < 0.02).float().mean() > 0.8, "image by image, and not only in the middle"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_finds_nearer_images_than_torchattacks():
    """Which takes one constant for all images."""
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")
    model, images, labels = digits(12)
    theirs = torchattacks.CW(model, c=1, steps=250, lr=0.02)(images, labels)
    ours = QUICK(model, images, labels)
    both = (model(ours).argmax(1) != labels) & (model(theirs).argmax(1) != labels)
    assert both.float().mean() > 0.8
    assert (size("L2", ours - images)[both] <= 1.01 * size("L2", theirs - images)[both]).all()


def test_an_image_leaves_when_its_own_objective_stalls():
    """And not when the batch's does: alone or among others, it takes the same passes to the same point."""
    model, images, labels = small()
    attack = CarliniWagner(steps=100, binary_steps=3, learning_rate=0.05, initial_constant=0.1)
    together = attack.run(model, images, labels)
    assert together.forwards.min() < together.forwards.max() < attack.passes(5)[0]
    for i in (together.forwards.argmin().item(), 5, together.forwards.argmax().item()):
        alone = attack.run(model, images[i : i + 1], labels[i : i + 1])
        assert alone.forwards.item() == together.forwards[i].item()
        torch.testing.assert_close(alone.images[0], together.images[i], rtol=0, atol=1e-5)


def test_pixels_at_the_ends_of_the_box_can_move():
    """atanh(±1) is infinite, so the search starts a millionth inside."""
    weight = torch.tensor([[4.0, -4.0, 4.0, -4.0]])
    images = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.6, 0.4, 1.0, 0.0]])

    def model(x):
        return torch.cat([x @ weight.T - 1, 1 - x @ weight.T], 1)

    # far out the tanh is flat: steps that take too long to leave it count as no progress
    attack = CarliniWagner(steps=100, binary_steps=2, learning_rate=0.8, initial_constant=1.0)
    found = attack(model, images, torch.zeros(2).long())
    assert found.isfinite().all()
    assert (model(found).argmax(1) == 1).all()


def test_fails_without_a_nan():
    fails_cleanly(CarliniWagner(steps=30, binary_steps=2))


def test_images_misclassified_already_stay():
    wrong_to_begin_with(CarliniWagner(steps=60, binary_steps=3, learning_rate=0.05, initial_constant=1.0))


@pytest.mark.parametrize(
    "attack", [CarliniWagner(steps=1, binary_steps=1), CarliniWagner(steps=20, binary_steps=3)], ids=repr
)
def test_stays_within_its_passes(attack):
    stays_within_its_passes(attack)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"binary_steps": 0},
        {"learning_rate": 0.0},
        {"initial_constant": 0.0},
        {"confidence": -1.0},
        {"confidence": float("nan")},
    ],
)
def test_refuses_what_cannot_be(wrong):
    with pytest.raises(UsageError):
        CarliniWagner(**wrong)
