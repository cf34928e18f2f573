"""Training methods as losses: each against its formula."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD
from bessemer.data import Augmentation, Batch, Batches, load
from bessemer.errors import UsageError
from bessemer.threat import Linf
from bessemer.training import SGD, Adversarial, Bang, Plain, fit
from bessemer.training.schedules import Fixed

ATTACK = PGD(Linf(0.1), steps=3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))


@pytest.fixture
def batch():
    return Batches(load("digits").train, 20, seed=3).next()


def test_plain_is_the_mean_cross_entropy(model, batch):
    torch.testing.assert_close(
        Plain().loss(model, batch), cross_entropy(model(batch.images), batch.labels), rtol=0, atol=1e-6
    )


def test_logits_are_kept_small_as_the_formulas_say(model, batch):
    model.eval()
    logits = model(batch.images).double()
    rows = torch.arange(20)

    def naive(temperature, smoothing):
        shares = torch.log_softmax(logits / temperature, 1)
        target = torch.full_like(shares, smoothing / 10)
        target[rows, batch.labels] += 1 - smoothing
        return -(target * shares).sum(1).mean()

    for method, expected in (
        (Plain(label_smoothing=0.2), naive(1, 0.2)),
        (Plain(temperature=0.5), naive(0.5, 0)),
        (Plain(logit_penalty=0.3), naive(1, 0) + 0.3 * (logits**2).sum() / 20),
    ):
        torch.testing.assert_close(method.loss(model, batch).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"temperature": 0}, "temperature"),
        ({"logit_penalty": -1}, "penalty"),
    ],
)
def test_what_keeps_logits_small_refuses_nonsense(settings, named):
    with pytest.raises(UsageError, match=named):
        Plain(**settings)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_adversarial_averages_over_adversarial_and_clean_images_together(share, model, batch):
    found = Adversarial(ATTACK, clean_share=share).loss(copy.deepcopy(model), batch)
    adversarial = ATTACK(model, batch.images, batch.labels, seed=batch.seed, index=batch.index)
    images = torch.cat([adversarial, batch.images[: round(20 * share)]])
    labels = torch.cat([batch.labels, batch.labels[: round(20 * share)]])
    torch.testing.assert_close(found, cross_entropy(model(images), labels), rtol=0, atol=1e-6)


def test_adversarial_training_leaves_no_gradient_of_the_search(model, batch):
    loss = Adversarial(ATTACK).loss(model, batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_random_starts_belong_to_images_not_to_the_batch(model, batch):
    half = Batch(batch.images[10:], batch.labels[10:], batch.index[10:], batch.seed)
    model.eval()
    torch.testing.assert_close(
        Adversarial(ATTACK).loss(model, half),
        cross_entropy(
            model(ATTACK(model, batch.images, batch.labels, seed=batch.seed, index=batch.index)[10:]), half.labels
        ),
    )


def test_bang_changes_weight_gradients_and_nothing_else(model, batch):
    losses, gradients = [], []
    for method in (Plain(), Bang(beta=1.0, epsilon=0.8), Bang(beta=1.0, epsilon=0.0)):
        model.zero_grad()
        with ExitStack() as until_done:
            loss = method.loss(method.prepare(model, until_done), batch)
            loss.backward()
        losses.append(loss.item())
        gradients.append(model[1].weight.grad.clone())
    assert losses[0] == losses[1] == losses[2]
    assert not torch.allclose(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=1e-7)


def test_bang_around_adversarial_balances_the_gradient_of_the_adversarial_batch(model, batch):
    inside = Adversarial(ATTACK)
    adversarial = ATTACK(model, batch.images, batch.labels, seed=batch.seed, index=batch.index)
    found = []
    for method, images in ((Bang(inside=inside), batch.images), (Bang(), adversarial)):
        model.zero_grad()
        with ExitStack() as until_done:
            given = Batch(images, batch.labels, batch.index, batch.seed)
            method.loss(method.prepare(model, until_done), given).backward()
        found.append(model[1].weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


def test_the_loop_is_the_bare_loop():
    data = load("digits").train
    torch.manual_seed(1)
    ours, bare = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    bare.load_state_dict(ours.state_dict())
    batches, same = (Batches(data, 32, seed=4, augmentation=Augmentation(crop=1)) for _ in range(2))
    optimizer = SGD(ours.parameters(), lr=0.1, momentum=0.9)
    fit(ours, batches, Plain(), optimizer, Fixed(), 0.1, 30, lambda done, loss: True)
    reference = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        batch = same.next()
        reference.zero_grad()
        cross_entropy(bare(batch.images), batch.labels).backward()
        reference.step()
    for one, other in zip(ours.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_share_beyond_one_is_refused():
    with pytest.raises(UsageError, match="between 0 and 1, found 1.5"):
        Adversarial(ATTACK, clean_share=1.5)
