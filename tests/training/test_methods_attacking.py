"""Methods that train on adversarial images: each loss against its formula, written out in float64."""

import copy
import math
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, nll_loss, softmax

from bessemer import layers, randomness
from bessemer.attacks import EOT, FGSM, PGD, DeepFool, GradientAttack, Worst, parts
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.threat import L2, Linf
from bessemer.training import (
    Adversarial,
    AdvProp,
    Free,
    LogitPairing,
    Mart,
    Mixture,
    Plain,
    Trades,
    WeightPerturbation,
)
from bessemer.training.methods.divergence import divergence
from bessemer.training.methods.mart import _boosted

ATTACK = PGD(Linf(0.1), steps=3)
THREE = ("main", "weak", "strong")


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5)
    return nn.Sequential(*layers).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 1, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(8) % 5, torch.arange(8) + 40, seed=7, iteration=3)


def attacked(model, batch, attack=ATTACK):
    return attack(model, batch.images, batch.labels, seed=batch.seed, index=batch.index)


def close(found, expected, rtol=1e-10):
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=rtol, atol=1e-12)


# --- adversarial training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_the_attack_sees_the_network_in_the_mode_that_is_asked_for(mode, model, batch):
    class InTraining(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = [model]  # not a submodule: nobody reaches its mode

        def forward(self, images):
            return self.inner[0](images)

    method = Adversarial(ATTACK, attack_mode=mode)
    untouched = copy.deepcopy(model)
    found = method.attacked(model, batch).adversarial
    # the attack of a network in training mode may change nothing of it either
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), untouched.buffers(), strict=True))
    assert all(module.training for module in model.modules())
    expected = attacked(untouched if mode == "evaluation" else InTraining(untouched), batch)
    close(found, expected)
    other = Adversarial(ATTACK, attack_mode="training" if mode == "evaluation" else "evaluation")
    assert not torch.equal(found, other.attacked(model, batch).adversarial)


def test_the_radius_warms_up(model, batch):
    method = Adversarial(PGD(Linf(0.1), steps=3), warmup=4)
    for iteration, eps in ((0, 0.025), (2, 0.075), (3, 0.1), (50, 0.1)):
        found = method.attacked(model, replace(batch, iteration=iteration)).adversarial
        close(found, attacked(model, batch, PGD(Linf(eps), steps=3)))
        assert (found - batch.images).abs().max() <= eps + 1e-12


def test_the_radius_of_an_attack_inside_another_warms_up(model, batch):
    for wrapped in (lambda attack: EOT(attack, samples=2), lambda attack: Worst((attack, FGSM(attack.threat)))):
        method = Adversarial(wrapped(PGD(Linf(0.1), steps=3)), warmup=4)
        found = method.attacked(model, replace(batch, iteration=0)).adversarial
        close(found, attacked(model, batch, wrapped(PGD(Linf(0.025), steps=3))))


def test_a_clean_share_of_no_image_is_refused(batch):
    method = Adversarial(ATTACK, clean_share=0.2)
    with pytest.raises(UsageError, match="0.2 of 2 images is none; take larger batches"):
        method.loss(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).double(), batch.part(0, 4))


def test_what_cannot_be_an_attack_on_the_network_is_refused():
    with pytest.raises(UsageError, match="attack_mode should be evaluation or training, found 'eval'"):
        Adversarial(ATTACK, attack_mode="eval")
    with pytest.raises(UsageError, match="from 0 upwards, found -1"):
        Trades(Linf(0.1), warmup=-1)
    for method in (Adversarial, LogitPairing):
        with pytest.raises(UsageError, match="warmup needs an attack with a radius, and DeepFool has none"):
            method(DeepFool(), warmup=5)
        with pytest.raises(UsageError, match="warmup needs an attack with a radius, and Worst has none"):
            method(Worst((DeepFool(),)), warmup=5)


def test_label_smoothing_comes_from_the_method_inside(model, batch):
    found = Adversarial(ATTACK, inside=Plain(label_smoothing=0.3)).loss(copy.deepcopy(model), batch)
    logits = log_softmax(model(attacked(model, batch)), 1)
    close(found, -(0.7 * logits.gather(1, batch.labels[:, None])[:, 0] + 0.3 * logits.mean(1)).mean())


@pytest.mark.parametrize(
    "method",
    [
        Adversarial(ATTACK, clean_share=0.5),
        Trades(Linf(0.1)),
        Mart(ATTACK),
        LogitPairing(ATTACK),
        Free(Linf(0.1)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_batch_that_brings_its_adversarial_images_is_not_attacked_again(method, model, batch):
    class Shaken(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            assert self.training, "an attack asks the model in evaluation mode"
            return self.model(images)

    once = method.attacked(model, batch)
    expected = method.loss(copy.deepcopy(model), batch)
    close(method.loss(Shaken(model), once), expected)


# --- TRADES -----------------------------------------------------------------------------------------------------------


def test_trades_is_the_published_loss(model, batch):
    batch = Trades(Linf(0.1)).attacked(model, batch)
    found = Trades(Linf(0.1), beta=4.0, label_smoothing=0.2).loss(copy.deepcopy(model), batch)
    clean, other = model(torch.cat([batch.images, batch.adversarial])).chunk(2)
    robust = kl_div(log_softmax(other, 1), softmax(clean, 1), reduction="batchmean")
    close(found, cross_entropy(clean, batch.labels, label_smoothing=0.2) + 4.0 * robust)


def test_trades_climbs_as_in_the_authors_code(model, batch):
    eps, steps, size = 0.1, 5, 0.03
    noise = randomness.normal((1, 4, 4), randomness.subseed(batch.seed, 0), batch.index, torch.float64)
    model.train()
    found = Trades(Linf(eps), steps=steps, step_size=size).attacked(model, batch).adversarial
    model.eval()
    x = (batch.images + 0.001 * noise).clamp(0, 1)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        loss = kl_div(log_softmax(model(x), 1), softmax(model(batch.images), 1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() + size * gradient.sign()
        x = torch.min(torch.max(x, batch.images - eps), batch.images + eps).clamp(0, 1)
    close(found, x)


def test_trades_moves_predictions_further_than_the_noise_it_starts_from(model, batch):
    model.eval()
    method = Trades(L2(0.5))
    far = divergence(model(batch.images), model(method.attacked(model, batch).adversarial))
    random = Trades(L2(0.5), step_size=1e-9).attacked(model, batch).adversarial
    assert (far > 10 * divergence(model(batch.images), model(random))).all()


def test_both_predictions_of_the_divergence_have_gradients(model, batch):
    torch.manual_seed(2)
    clean, other = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(divergence, (clean, other))
    assert (divergence(clean, other) > 0).all()
    assert divergence(clean, clean).abs().max() == 0


# --- MART -------------------------------------------------------------------------------------------------------------


def authors_mart(clean, other, labels, beta):
    """The loss of the authors' code, from the two logits."""
    p = softmax(other, 1)
    best = torch.argsort(p, dim=1)[:, -2:]
    second = torch.where(best[:, -1] == labels, best[:, -2], best[:, -1])
    adversarial = cross_entropy(other, labels) + nll_loss(torch.log(1.0001 - p + 1e-12), second)
    natural = softmax(clean, 1)
    own = natural.gather(1, labels[:, None])[:, 0]
    apart = kl_div(torch.log(p + 1e-12), natural, reduction="none").sum(1)
    return adversarial + beta * (apart * (1.0000001 - own)).sum() / len(labels)


def test_mart_is_the_published_loss(model, batch):
    found = Mart(ATTACK, beta=5.0).loss(copy.deepcopy(model), batch)
    clean, other = model(torch.cat([batch.images, attacked(model, batch)])).chunk(2)
    close(found, authors_mart(clean, other, batch.labels, 5.0), rtol=3e-4)  # the code's 1.0001
    total = 0.0
    for z, w, label in zip(softmax(clean, 1).tolist(), softmax(other, 1).tolist(), batch.labels.tolist(), strict=True):
        wrong = max(value for place, value in enumerate(w) if place != label)
        apart = sum(a * math.log(a / b) for a, b in zip(z, w, strict=True))
        total += -math.log(w[label]) - math.log(1 - wrong) + 5.0 * apart * (1 - z[label])
    assert found.item() == pytest.approx(total / len(batch), rel=1e-10)


def test_marts_logarithm_keeps_its_digits_where_the_network_is_surely_wrong():
    logits = torch.tensor([[0.0, 60.0, 1.0]], requires_grad=True)
    loss = _boosted(logits, torch.tensor([[0]]))
    # -log p_0 = 60, and 1 - p_1 = (1 + e) / e^60
    assert loss.item() == pytest.approx(60 + 60 - math.log(1 + math.e), rel=1e-6)
    loss.sum().backward()
    assert logits.grad.isfinite().all()


# --- logit pairing ----------------------------------------------------------------------------------------------------


def test_adversarial_pairing_adds_the_mean_squared_difference(model, batch):
    found = LogitPairing(ATTACK, weight=0.7, label_smoothing=0.1).loss(copy.deepcopy(model), batch)
    clean, other = model(torch.cat([batch.images, attacked(model, batch)])).chunk(2)
    mean = sum(cross_entropy(half, batch.labels, label_smoothing=0.1) for half in (clean, other)) / 2
    close(found, mean + 0.7 * ((clean - other) ** 2).sum() / (8 * 5))


def test_adversarial_pairing_uses_the_branches_of_a_mixture_norm(model, batch):
    model = layers.mixture_norm(model)
    shaken(model)
    method = LogitPairing(ATTACK, weight=0.7)
    adversarial = attacked(layers.route(model, "adversarial"), batch)
    found = method.loss(copy.deepcopy(model), batch)
    clean = layers.route(model, "clean")(batch.images)
    other = layers.route(model, "adversarial")(adversarial)
    mean = (cross_entropy(clean, batch.labels) + cross_entropy(other, batch.labels)) / 2
    close(found, mean + 0.7 * (clean - other).square().mean())
    assert method.branch == "adversarial"


def noisy(batch, noise):
    drawn = randomness.normal((1, 4, 4), batch.seed, batch.index, torch.float64, stream=8)
    return (batch.images + noise * drawn).clamp(0, 1)


def test_clean_pairing_and_squeezing_see_noise_and_no_attack(model, batch):
    for noise in (0.0, 0.3):
        logits = copy.deepcopy(model)(noisy(batch, noise))
        plain = cross_entropy(logits, batch.labels)
        found = LogitPairing(weight=0.4, form="clean", noise=noise).loss(copy.deepcopy(model), batch)
        close(found, plain + 0.4 * sum((logits[i] - logits[i + 4]).square().mean() for i in range(4)) / 4)
        found = LogitPairing(weight=0.4, form="squeezing", noise=noise).loss(copy.deepcopy(model), batch)
        close(found, plain + 0.4 * logits.square().mean())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "adversarial"}, "needs an attack"),
        ({"form": "clean", "attack": ATTACK}, "none should be given"),
        ({"form": "adversarail", "attack": ATTACK}, "did you mean 'adversarial'"),
        ({"attack": ATTACK, "weight": -1.0}, "weight should be a number from 0 upwards"),
        ({"attack": ATTACK, "label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_pairs_that_cannot_be_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        LogitPairing(**settings)


# --- mixture, AdvProp -------------------------------------------------------------------------------------------------


def shaken(model):
    """Branches that differ: as many draws as there are numbers."""
    generator = torch.Generator().manual_seed(4)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.data += 0.3 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)


def test_mixture_averages_the_means_of_two_branches(model, batch):
    model = layers.mixture_norm(model, ("a", "b"))
    shaken(model)
    method = Mixture(ATTACK, clean="a", adversarial="b", inside=Plain(label_smoothing=0.1))
    adversarial = attacked(layers.route(model, "b"), batch)
    copied = copy.deepcopy(model)
    found = method.loss(copied, batch)
    logits = layers.route(model, "a")(batch.images), layers.route(model, "b")(adversarial)
    close(found, sum(cross_entropy(each, batch.labels, label_smoothing=0.1) for each in logits) / 2)
    # each branch has seen its own images, and those alone
    assert all(torch.equal(one, other) for one, other in zip(copied.buffers(), model.buffers(), strict=True))
    assert method.branch == "b"


@pytest.mark.parametrize(
    ("method", "missing"),
    [
        (Mixture(ATTACK), "the branches clean, adversarial, but the model has no mixture norm"),
        (AdvProp(ATTACK, "main", ("weak",)), "the branches main, weak, but the model has no mixture norm"),
    ],
    ids=["mixture", "adv-prop"],
)
def test_a_model_without_the_branches_is_refused(method, missing, model):
    with pytest.raises(UsageError, match=missing), ExitStack() as until_done:
        method.prepare(model, until_done)
    with pytest.raises(UsageError, match="has the branches main, weak, strong"), ExitStack() as until_done:
        method.prepare(layers.mixture_norm(model, THREE), until_done)
    with pytest.raises(UsageError, match=r'branches = \["clean", "adversarial"\]'), ExitStack() as until_done:
        LogitPairing(ATTACK).prepare(model, until_done)


def test_adv_prop_sends_every_image_through_each_auxiliary_branch(model, batch):
    model = layers.mixture_norm(model, THREE)
    shaken(model)
    attack = PGD(Linf(0.1), steps=3, step_size=0.04)
    method = AdvProp(attack, main="main", auxiliary=("weak", "strong"), strengths=(0.25, 1.5))
    by_branch = {"weak": PGD(Linf(0.025), 3, 0.01), "strong": PGD(Linf(0.15), 3, 0.06)}
    images = {name: attacked(layers.route(model, name), batch, each) for name, each in by_branch.items()}
    found = method.loss(copy.deepcopy(model), batch)
    expected = cross_entropy(layers.route(model, "main")(batch.images), batch.labels)
    for name, each in images.items():
        expected = expected + cross_entropy(layers.route(model, name)(each), batch.labels)
    close(found, expected)
    assert method.branch == "main"


@pytest.mark.parametrize("size", [parts.Constant, parts.AtLeast])
def test_adv_prop_scales_the_steps_of_an_attack_put_together_from_parts(size, model, batch):
    model = layers.mixture_norm(model)
    found = AdvProp(GradientAttack(Linf(0.1), 3, step_size=size(0.04)), strengths=(0.25,)).attacked(model, batch)
    weaker = GradientAttack(Linf(0.025), 3, step_size=size(0.01))
    close(found.adversarial, attacked(layers.route(model, "adversarial"), batch, weaker))


def test_adv_prop_with_one_auxiliary_branch_is_algorithm_1(model, batch):
    model = layers.mixture_norm(model)
    shaken(model)
    adversarial = attacked(layers.route(model, "adversarial"), batch)
    for per_image in (False, True):
        found = AdvProp(ATTACK, per_image=per_image).loss(copy.deepcopy(model), batch)
        logits = [
            copy.deepcopy(layers.route(model, name))(images)
            for name, images in (("clean", batch.images), ("adversarial", adversarial))
        ]
        close(found, sum(cross_entropy(each, batch.labels) for each in logits))


def test_adv_prop_can_give_each_image_one_strength(model, batch):
    model = layers.mixture_norm(model, THREE)
    shaken(model)
    method = AdvProp(ATTACK, "main", ("weak", "strong"), (0.1, 1.0), per_image=True)
    given = method.attacked(model, batch).adversarial
    moved = (given - batch.images).flatten(1).abs().amax(1)
    assert (moved[:4] <= 0.01 + 1e-12).all()
    assert (moved[4:] > 0.05).all()
    found = method.loss(copy.deepcopy(model), batch)
    weak, strong = layers.route(model, "weak")(given[:4]), layers.route(model, "strong")(given[4:])
    clean = cross_entropy(layers.route(model, "main")(batch.images), batch.labels)
    close(found, clean + cross_entropy(torch.cat([weak, strong]), batch.labels))
    with pytest.raises(UsageError, match="1 images cannot be shared out among 2"):
        method.loss(model, batch.part(0, 8))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"auxiliary": ()}, "an auxiliary one at least"),
        ({"auxiliary": ("clean",)}, "branches that differ"),
        ({"auxiliary": ("a", "b")}, "a number for each auxiliary branch: 2"),
        ({"strengths": (0.0,)}, "factors above 0"),
        ({"attack": EOT(ATTACK), "strengths": (0.5,)}, "with a radius of its own: EOT has none"),
    ],
)
def test_branches_that_cannot_be_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        AdvProp(**{"attack": ATTACK, **settings})


# --- free -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=str)
def test_free_training_is_algorithm_1_written_out(threat, model, batch):
    model = nn.Sequential(model[0], model[1], model[3], model[4])
    ours, naive = copy.deepcopy(model), copy.deepcopy(model)
    method = Free(threat, replays=3)
    assert method.updates == 3
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.5)
    losses = []
    for loss in method.losses(ours, batch):
        optimizer.zero_grad()
        (3 * loss).backward()  # as a loss scaler would: the perturbation goes the same way
        for parameter in ours.parameters():
            parameter.grad /= 3
        optimizer.step()
        losses.append(loss.detach())
    delta = threat.sample(batch.images, batch.seed, batch.index) - batch.images
    for expected in losses:
        x = (batch.images + delta).requires_grad_()
        loss = cross_entropy(naive(x), batch.labels)
        close(expected, loss)
        gradients = torch.autograd.grad(loss, [*naive.parameters(), x])
        with torch.no_grad():
            for parameter, gradient in zip(naive.parameters(), gradients, strict=False):
                parameter -= 0.5 * gradient
        if threat.norm == "Linf":
            delta = (delta + 0.1 * gradients[-1].sign()).clamp(-0.1, 0.1)
        else:
            delta = delta + 0.6 * gradients[-1] / gradients[-1].flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = delta * (0.6 / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        delta = (batch.images + delta.detach()).clamp(0, 1) - batch.images
    for one, other in zip(ours.parameters(), naive.parameters(), strict=True):
        close(one, other)


def test_free_training_refuses_what_it_cannot_do(model, batch):
    with pytest.raises(UsageError, match="from 1 upwards, found 0"):
        Free(Linf(0.1), replays=0)
    with pytest.raises(UsageError, match="Free cannot be inside"):
        Free(Linf(0.1), inside=Free(Linf(0.1)))
    for attacking in (Trades(Linf(0.1)), LogitPairing(ATTACK), WeightPerturbation(inside=Adversarial(ATTACK))):
        with pytest.raises(UsageError, match="which attacks them, cannot be inside"):
            Free(Linf(0.1), inside=attacking)
    Free(Linf(0.1), inside=LogitPairing(form="squeezing"))
    losses = Free(Linf(0.1)).losses(model, batch)
    next(losses)
    with pytest.raises(UsageError, match="needs the backward pass"):
        next(losses)


def test_a_method_of_several_updates_cannot_be_inside_one_that_attacks():
    with pytest.raises(UsageError, match="Free makes several updates of a batch, so it cannot be inside Adversarial"):
        Adversarial(PGD(Linf(0.1)), inside=Free(Linf(0.1)))
