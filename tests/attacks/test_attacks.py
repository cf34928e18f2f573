"""What is particular to each attack, against its definition."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import (
    APGD,
    FGSM,
    PGD,
    CarliniWagner,
    FGSLine,
    GaussianNoise,
    Goal,
    HopSkipJump,
    HotCold,
    Oracle,
    Square,
    Worst,
    losses,
)
from bessemer.errors import ModelError, UsageError
from bessemer.threat import L1, L2, Linf


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).eval()


@pytest.fixture
def batch(model):
    images = (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    return images, model(images).argmax(1)


def input_gradient(model, images, objective):
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(model(x)).sum(), x)
    return gradient


def test_fgsm_is_one_signed_step(model, batch):
    images, labels = batch
    gradient = input_gradient(model, images, lambda z: cross_entropy(z, labels))
    expected = (images + 0.1 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(FGSM(Linf(0.1))(model, images, labels), expected)


def test_pgd_follows_its_recursion_and_returns_the_worst_point(model, batch):
    images, labels = batch
    x, visited = images.clone(), []
    for _ in range(6):
        visited.append(x)
        gradient = input_gradient(model, x, lambda z: cross_entropy(z, labels))
        change = x + 0.03 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - images
        change *= (0.1 / change.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        x = (images + change).clamp(0, 1)
    visited.append(x)
    losses = torch.stack([cross_entropy(model(x), labels, reduction="none") for x in visited])
    wrong = torch.stack([model(x).argmax(1) != labels for x in visited])
    best = (losses + 1e6 * wrong).argmax(0)
    expected = torch.stack([visited[best[i]][i] for i in range(len(images))])
    found = PGD(L2(0.1), steps=6, step_size=0.03, random_start=False)(model, images, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_more_restarts_and_more_steps_never_help_the_defender(model, batch):
    images, labels = batch

    def fooled(**settings):
        return model(PGD(Linf(0.15), **settings)(model, images, labels)).argmax(1) != labels

    one, three = fooled(steps=5, step_size=0.06), fooled(steps=5, step_size=0.06, restarts=3)
    longer = fooled(steps=15, step_size=0.06)
    assert not (one & ~three).any()
    assert not (one & ~longer).any()
    assert one.any()
    assert not one.all()


def test_the_margin_is_positive_exactly_where_the_goal_is_reached():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    labels, target = torch.arange(50) % 6, (torch.arange(50) + 2) % 6
    for goal in (Goal(labels), Goal(labels, target)):
        assert torch.equal(losses.margin(goal, logits) > 0, goal.reached(logits))


def test_hot_cold_takes_the_direction_of_its_definition(model, batch):
    """Its objective's gradient is J_h(x)^T w with w = |h| at the hot class and -h at the cold one, written out."""
    images, labels = batch
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), images)  # (classes, N, 1, 4, 4)
    for rank in (1, 2, 4):
        oracle = Oracle(model, images, Goal(labels))
        found, logits, _ = oracle.gradient(images, HotCold(rank)._objective)
        for i, label in enumerate(labels):
            order = [int(k) for k in logits[i].argsort(descending=True) if k != label]
            hot = order[rank - 1]
            expected = logits[i, hot].abs() * jacobian[hot, i] - logits[i, label] * jacobian[label, i]
            torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-6)


def test_hot_cold_finds_the_nearest_grey_levels_on_its_ray(model, batch):
    """A tenth of the scale less, and the image is right again: found by trying every scale naively."""
    images, labels = batch
    oracle = Oracle(model, images, Goal(labels))
    gradient, _, _ = oracle.gradient(images, HotCold()._objective)
    found = HotCold()(model, images, labels)
    assert (model(found).argmax(1) != labels).all()
    for i in range(len(images)):
        direction = gradient[i] / gradient[i].abs().max()
        scales = torch.arange(0, 600, 0.02)[:, None, None, None]
        ray = ((images[i] * 255).round() + scales * direction).round().clamp(0, 255) / 255
        fooled = model(ray).argmax(1) != labels[i]
        first = ray[fooled.nonzero()[0, 0]]
        # bisection after doubling may settle on a later crossing, never on a nearer image than the first
        assert (found[i] - images[i]).abs().max() >= (first - images[i]).abs().max() - 1e-6
        crossings = (fooled[1:] & ~fooled[:-1]).sum()
        if crossings == 1:
            torch.testing.assert_close(found[i], first, rtol=0, atol=1.01 / 255)


def test_fgs_line_finds_the_first_grey_level_that_fools(model, batch):
    images, labels = batch
    sign = input_gradient(model, images, lambda z: cross_entropy(z, labels)).sign()
    found = FGSLine()(model, images, labels)
    for i in range(len(images)):
        radii = torch.arange(1, 256)[:, None, None, None]
        ray = ((images[i] * 255).round() + radii * sign[i]).clamp(0, 255) / 255
        fooled = model(ray).argmax(1) != labels[i]
        expected = ray[fooled.nonzero()[0, 0]] if fooled.any() else images[i]
        torch.testing.assert_close(found[i], expected)


def test_fgs_line_finds_a_class_that_the_ray_crosses_and_leaves_again():
    """Wrong only between 40 and 60 grey levels: a bisection would miss it."""

    def model(x):
        level = x.flatten(1)[:, :1] * 255
        return torch.cat([torch.zeros_like(level), 1 - (level - 50).square() / 100], 1)

    found = FGSLine()(model, torch.zeros(1, 1, 1, 2), torch.tensor([0]))
    assert 40 <= found[0, 0, 0, 0] * 255 <= 42


@pytest.mark.parametrize("attack", [FGSLine(), HotCold()], ids=repr)
def test_a_zero_direction_is_a_failure_and_not_a_nan(attack):
    """Divided by its own largest pixel, a zero direction is NaN, and NaN 'misclassifies'."""

    def model(x):
        return (x.flatten(1)[:, :3] * 0) + torch.tensor([3.0, 1.0, 0.0])

    images = torch.full((4, 1, 2, 2), 100 / 255)
    outcome = attack.run(model, images, torch.zeros(4).long(), until_success=True)
    assert torch.equal(outcome.images, images)
    assert outcome.zero_gradients.tolist() == [1, 1, 1, 1]


def test_zero_gradients_are_counted_and_asked_again_in_float64():
    """A softmax that underflows in float32 still has a gradient in float64; a constant has none in either."""

    class Confident(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            mean = x.flatten(1).mean(1, keepdim=True)
            gap = torch.where(mean > 0.5, 300 + mean, torch.where(mean > 0.25, 2 + mean, 2 + 0 * mean))
            return self.scale * torch.cat([gap, -mean.where(mean > 0.25, 0 * mean)], 1)

    images = torch.tensor([0.8, 0.4, 0.1]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    attack = PGD(Linf(0.01), steps=3, random_start=False)
    outcome = attack.run(Confident(), images, torch.zeros(3).long(), until_success=True)
    assert outcome.gradients.tolist() == [3, 3, 3]
    assert outcome.zero_gradients.tolist() == [3, 0, 3]
    assert outcome.zero_in_float64.tolist() == [0, 0, 1]
    confident = Confident()
    unknown = attack.run(lambda x: confident(x), images, torch.zeros(3).long(), until_success=True).zero_in_float64
    assert unknown.isnan().tolist() == [True, False, True], "a callable that is no module cannot be asked in float64"


def test_a_level_loss_beyond_the_goal_is_no_zero_gradient(model, batch):
    """Carlini and Wagner's hinge is level wherever the attack has succeeded; nothing is hidden there."""
    attack = CarliniWagner(steps=60, binary_steps=2, learning_rate=0.05, initial_constant=1.0)
    outcome = attack.run(model, *batch, until_success=True)
    assert (model(outcome.images).argmax(1) != batch[1]).any()
    assert outcome.gradients.sum() > 0
    assert outcome.zero_gradients.sum() == 0


class Kinked(nn.Module):
    """The square root of a distance has slope 0 · ∞ = NaN where that distance is 0; logits are numbers everywhere."""

    def __init__(self, net, kink):
        super().__init__()
        self.net, self.kink = net, kink

    def forward(self, x):
        return self.net(x) + 0 * (x.flatten(1)[:, :1] - self.kink).abs().sqrt()


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(2.0)], ids=repr)
@pytest.mark.parametrize("kind", [FGSM, PGD, APGD])
def test_a_slope_that_is_nan_stops_one_pixel_and_not_the_attack(kind, threat, model, batch):
    images, labels = batch
    kinked = Kinked(model, images[3, 0, 0, 0].item()).eval()
    assert input_gradient(kinked, images, lambda z: z.sum(1)).isnan().any()
    settings = {FGSM: {}, PGD: {"steps": 5, "random_start": False}, APGD: {"steps": 10}}[kind]
    found = kind(threat, **settings)(kinked, images, labels)
    assert found.isfinite().all()
    threat.require(found, images, slack=1e-6)
    assert (found != images).flatten(1).any(1).all()


def test_a_model_that_writes_into_its_images_is_refused(model, batch):
    images, labels = batch
    for attack in (Square(Linf(0.1), queries=5), HopSkipJump(steps=1), GaussianNoise(0.1)):
        with pytest.raises(ModelError, match="writes into the images"):
            attack(lambda x: model(x.sub_(0.5)), images.clone(), labels)


def test_nan_for_the_first_image_or_for_one_alone_is_no_broken_model(model, batch):
    images, labels = batch

    def sometimes(x):
        return torch.where((x.flatten(1)[:, :1] - images[0, 0, 0, 0]).abs() < 0.2, torch.nan, model(x))

    assert sometimes(images).isnan().any(1)[0]
    worst = Worst((PGD(Linf(0.1), steps=2), FGSM(Linf(0.1))))
    torch.testing.assert_close(worst(sometimes, images, labels)[:1], worst(sometimes, images[:1], labels[:1]))
    with pytest.raises(ModelError, match="NaN for each of 20"):
        worst(lambda x: model(x) * torch.nan, images, labels)


def test_passes_are_counted_image_by_image(model, batch):
    images, labels = batch
    outcome = PGD(Linf(0.3), steps=10, restarts=2).run(model, images, labels)
    assert set(outcome.forwards.tolist()) == {22}
    assert set(outcome.backwards.tolist()) == {20}
    early = PGD(Linf(0.3), steps=10, restarts=2).run(model, images, labels, until_success=True)
    assert early.forwards.min() < 22


def test_noise_has_the_size_it_says(model):
    images = torch.full((1, 1, 200, 200), 0.5)
    found = GaussianNoise(0.05)(lambda x: x.flatten(1)[:, :3], images, torch.tensor([0]))
    assert (found - 0.5).std().item() == pytest.approx(0.05, rel=0.02)


def test_hot_cold_needs_a_class_of_its_rank(model, batch):
    with pytest.raises(UsageError, match="rank 5 needs 6 classes"):
        HotCold(rank=5)(model, *batch)
