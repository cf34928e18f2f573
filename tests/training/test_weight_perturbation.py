"""Adversarial weight perturbation: against the authors' update, and what it must leave alone."""

import copy
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.models import BottleneckResNet
from bessemer.threat import Linf
from bessemer.training import Adversarial, Bang, Free, Plain, Recipe, Trades, WeightPerturbation

ATTACK = PGD(Linf(0.1), steps=2)


def network():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double()


def batch(iteration=0):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 1, 6, 6, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(8) % 5, torch.arange(8), seed=2, iteration=iteration)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def authors(model, loss_of, gamma):
    """The gradient of the authors' code: a proxy makes the ascent, the weights are moved in place."""
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-loss_of(proxy)).backward()
    optimizer.step()
    differences = {}
    for (name, old), new in zip(model.state_dict().items(), proxy.state_dict().values(), strict=True):
        if old.dim() > 1 and "weight" in name:
            differences[name] = old.norm() / ((new - old).norm() + 1e-20) * (new - old)
    assert list(differences) == ["0.weight", "4.weight"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in differences:
                parameter.add_(gamma * differences[name])
    loss = loss_of(model)
    return loss.detach(), gradients(model, loss)


@pytest.mark.parametrize("inside", [Plain(), Adversarial(ATTACK), Trades(Linf(0.1), steps=2)], ids=repr)
def test_loss_and_gradient_are_those_of_the_authors_code(inside):
    model, theirs = network(), network()
    given = inside.attacked(theirs, batch())
    expected_loss, expected = authors(theirs, lambda each: inside.loss(each, given), 0.05)
    before = copy.deepcopy(dict(model.named_parameters()))
    loss = WeightPerturbation(gamma=0.05, inside=inside).loss(model, batch())
    torch.testing.assert_close(loss.detach(), expected_loss)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-10)
    # nothing is moved; batch norm has seen the second pass alone
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    for (name, one), other in zip(model.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert model[1].num_batches_tracked == 1


def test_the_perturbation_makes_the_loss_worse_and_is_as_large_as_gamma_says():
    model, method = network().eval(), WeightPerturbation(gamma=0.05)
    for name, weight, change in method._changes(model, batch()):
        assert name.endswith("weight")
        assert change.norm().item() == pytest.approx(0.05 * weight.norm().item())
    losses = [WeightPerturbation(gamma=gamma).loss(model, batch()).item() for gamma in (0.0, 0.001, 0.05)]
    assert losses[0] < losses[1] < losses[2]


def test_it_waits_for_its_warm_up():
    model = network().eval()
    plain = Plain().loss(model, batch())
    waiting = WeightPerturbation(gamma=0.05, warmup=4)
    assert torch.equal(waiting.loss(model, batch(3)), plain)
    assert waiting.loss(model, batch(4)) > plain
    assert next(waiting.losses(model, batch(4))) > plain


def test_weights_without_a_gradient_stay():
    model = network().eval()
    with torch.no_grad():
        model[0].weight.fill_(-10.0)  # behind a ReLU that is shut everywhere
    changes = {name: change for name, _, change in WeightPerturbation(gamma=0.05)._changes(model, batch())}
    assert changes["0.weight"].abs().max() == 0
    model[4].weight.requires_grad_(False)
    assert [name for name, _, _ in WeightPerturbation()._changes(model, batch())] == ["0.weight"]


def test_the_attack_is_made_once_and_at_the_weights_themselves():
    calls = []

    class Counted(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            calls.append(self.training)
            return self.model(images)

    model = Counted(network())
    WeightPerturbation(inside=Adversarial(ATTACK)).loss(model, batch())
    assert calls.count(True) == 2
    assert calls.count(False) == ATTACK.passes(5)[0] - 1


def test_bang_balances_the_pass_at_the_perturbed_weights():
    inside = Adversarial(ATTACK)
    bang = Bang(epsilon=0.8, misclassified=0.5, inside=WeightPerturbation(gamma=0.05, inside=inside))
    model, moved = network(), network()
    with ExitStack() as until_done:
        found = gradients(model, bang.loss(bang.prepare(model, until_done), batch()))
    with ExitStack() as until_done:
        prepared = bang.prepare(moved, until_done)
        given = inside.attacked(prepared, batch())
        changes = list(bang.inside._changes(prepared, given))
        with torch.no_grad():
            for _, weight, change in changes:
                weight += change
        loss = inside.loss(prepared, given)
        expected = gradients(prepared, loss)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-10)


def test_what_it_cannot_be_around_is_refused():
    with pytest.raises(UsageError, match="Free makes 4; perturb another"):
        WeightPerturbation(inside=Free(Linf(0.1)))
    with pytest.raises(UsageError, match="Bang makes 4"):
        WeightPerturbation(inside=Bang(inside=Free(Linf(0.1))))
    with pytest.raises(UsageError, match="gamma"):
        WeightPerturbation(gamma=-1.0)
    with pytest.raises(UsageError, match="warmup"):
        WeightPerturbation(warmup=-1)
    small = {"classes": 5, "depth": (1, 1), "width": 4, "stem": "cifar", "size": 8}
    with ExitStack() as until_done:
        with pytest.raises(UsageError, match="checkpointing = false"):
            WeightPerturbation().prepare(BottleneckResNet(**small, checkpointing=True), until_done)
        WeightPerturbation().prepare(BottleneckResNet(**small), until_done)


def test_accumulation_is_refused_in_a_recipe():
    tables = {
        "data": {"name": "digits"},
        "model": {"name": "digits-net"},
        "optimizer": {"lr": 0.1},
        "method": {"name": "only-layers", "match": "*", "inside": {"name": "weight-perturbation"}},
        "training": {"batch_size": 20, "iterations": 1},
    }
    assert Recipe.from_tables(tables, "x").method.inside == WeightPerturbation()
    tables["training"]["accumulation"] = 2
    with pytest.raises(UsageError, match="weights are perturbed along the gradient of the whole batch"):
        Recipe.from_tables(tables, "x")


def test_the_loss_is_the_cross_entropy_at_other_weights():
    model = network().eval()
    given = replace(batch(), images=batch().images)
    changes = {name: weight + change for name, weight, change in WeightPerturbation(gamma=0.1)._changes(model, given)}
    expected = cross_entropy(torch.func.functional_call(model, changes, (given.images,)), given.labels)
    torch.testing.assert_close(WeightPerturbation(gamma=0.1).loss(model, given), expected)
