"""DeepFool against exact distances, its algorithm written out, and two other libraries."""

from dataclasses import replace

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
from torch import nn

from bessemer.attacks.deep_fool import DeepFool
from bessemer.errors import UsageError

NORMS = ("L2", "Linf")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(("shape", "count"), [((16,), 1), ((1, 5, 5), 3), ((3, 8, 8), 8)])
def test_is_exact_on_linear_models(norm, classes, shape, count):
    problem = linear(shape, classes, count)
    found = DeepFool(norm)(problem, problem.images, problem.labels)
    assert (problem(found).argmax(1) != problem.labels).all()
    # float32 pixels near 1/2 are 3e-8 apart
    torch.testing.assert_close(size(norm, found - problem.images), problem.exact(norm), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_is_never_worse_than_clipping_where_the_box_cuts(norm, classes):
    problem = linear((1, 5, 5), classes, 8, low=-0.3, high=1.3, near=0.2, far=0.8)
    expected = clipped_ray(problem, norm)
    found = DeepFool(norm)(problem, problem.images, problem.labels)
    assert 0 <= found.min() <= found.max() <= 1
    assert (problem(found).argmax(1) != problem.labels).all()
    distance = size(norm, found - problem.images)
    assert (distance > 1.01 * problem.exact(norm)).any(), "the box should matter here"
    # with more than two classes it may set out for one that turns out to be further, because the box holds pixels back
    assert (distance <= expected * (1.002 if classes == 2 else 1.03) + 5e-4).all()


@pytest.mark.parametrize("norm", NORMS)
def test_follows_its_algorithm(norm):
    """Algorithm 2 for one image at a time in float64, and the segment at its end walked in small steps."""
    model, images, labels = small()
    found = size(norm, DeepFool(norm)(model, images, labels) - images)
    model, images = model.double(), images.double()
    for i, label in enumerate(labels.tolist()):
        x0 = images[i : i + 1]
        x, change = x0, torch.zeros_like(x0)
        for _ in range(50):
            jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[0], x)[:, 0]
            logits = model(x)[0]
            steps = []
            for k in range(5):
                if k != label:
                    w, f = jacobian[k] - jacobian[label], logits[k] - logits[label]
                    length = f.abs() / (w.norm() if norm == "L2" else w.abs().sum())
                    steps.append((length.item(), w / w.norm() if norm == "L2" else w.sign()))
            length, direction = min(steps, key=lambda step: step[0])
            change = change + (length + 1e-4) * direction
            before, x = x, (x0 + 1.02 * change).clamp(0, 1)
            if model(x).argmax() != label:
                break
        walk = before + torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None, None, None] * (x - before)
        first = walk[(model(walk).argmax(1) != label).nonzero()[0]]
        end = size(norm, x - before).item() / 2**11
        assert found[i].item() == pytest.approx(size(norm, first - x0).item(), abs=1.1 * end + 1e-5)


@pytest.mark.parametrize("candidates", [2, 3])
def test_looks_only_at_the_likeliest_classes(candidates):
    """A distant boundary of a likely class is taken where the near one of an unlikely class is no candidate."""
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 8.0]])
    bias = torch.tensor([1.0, 0.3, -4.0])  # logits 1, 0.5, -0.8 at (0.2, 0.4): 0.5 and 0.225 away

    def model(x):
        return x @ weight.T + bias

    images, labels = torch.tensor([[0.2, 0.4]]), torch.tensor([0])
    outcome = DeepFool(candidates=candidates).run(model, images, labels)
    expected = {2: 0.5, 3: 0.225}[candidates]
    assert size("L2", outcome.images - images).item() == pytest.approx(expected, rel=1e-3)
    assert outcome.backwards.item() == candidates


def test_two_equal_logits_are_no_dead_end():
    """The nearest boundary is at distance 0, and a step of that length would stay there for ever."""

    def model(x):
        return torch.cat([x[:, :1], x[:, 1:2], x[:, :1] - 1], 1)

    images, labels = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    found = DeepFool()(model, images, labels)
    assert model(found).argmax(1) == 1
    assert size("L2", found - images) < 2e-4


def test_an_image_that_no_step_turns_comes_back():
    def model(x):
        return torch.cat([10 + x.sum(1, keepdim=True), x.sum(1, keepdim=True) / 2], 1)

    images = torch.full((2, 4), 0.5)
    assert torch.equal(DeepFool(steps=4)(model, images, torch.zeros(2).long()), images)


def test_goes_on_where_a_cheaper_copy_is_fooled_first():
    problem = linear((16,), 3, 8)
    tired = replace(problem, bias=problem.bias - 0.5 * nn.functional.one_hot(problem.labels, 3)[0])
    same = problem.labels == problem.labels[0]
    images, labels = problem.images[same], problem.labels[same]
    found = DeepFool().run(problem, images, labels, through=tired).images
    assert (problem(found).argmax(1) != labels).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_agrees_with_foolbox(norm):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: make bench installs it")
    model, images, labels = digits(60)
    attack = {"L2": foolbox.attacks.L2DeepFoolAttack, "Linf": foolbox.attacks.LinfDeepFoolAttack}[norm]()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, theirs, fooled = attack(wrapped, images, labels, epsilons=None)
    ours = DeepFool(norm)(model, images, labels)
    assert fooled.all()
    assert (model(ours).argmax(1) != labels).all()
    ratio = size(norm, ours - images).median() / size(norm, theirs - images).median()
    assert 0.95 < ratio < 1.005


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_agrees_with_torchattacks():
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")
    model, images, labels = digits(16)
    theirs = torchattacks.DeepFool(model)(images, labels)
    ours = DeepFool()(model, images, labels)
    # theirs stop on the boundary itself, on either side of it: success is not compared
    ratio = size("L2", ours - images).median() / size("L2", theirs - images).median()
    assert 0.95 < ratio < 1.02


@pytest.mark.parametrize("norm", NORMS)
def test_fails_without_a_nan(norm):
    fails_cleanly(DeepFool(norm))


def test_images_misclassified_already_stay():
    wrong_to_begin_with(DeepFool())


@pytest.mark.parametrize("attack", [DeepFool(), DeepFool("Linf", candidates=3), DeepFool(steps=1)], ids=repr)
def test_stays_within_its_passes(attack):
    stays_within_its_passes(attack)


def test_refuses_what_cannot_be():
    for wrong in ({"norm": "L0"}, {"norm": "L1"}, {"steps": 0}, {"candidates": 1}, {"overshoot": 0.0}):
        with pytest.raises(UsageError):
            DeepFool(**wrong)
    with pytest.raises(UsageError):
        DeepFool(overshoot=float("nan"))
    model, images, labels = small()
    with pytest.raises(UsageError, match="takes no target"):
        DeepFool()(model, images, labels, target=(labels + 1) % 5)
