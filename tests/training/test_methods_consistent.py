"""Consistent batch norm as a training method: from an iteration on, training is what testing will be."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import PGD
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.models import BottleneckResNet
from bessemer.threat import Linf
from bessemer.training import Adversarial, ConsistentNorm, Free, Plain, WeightPerturbation

ATTACK = PGD(Linf(0.1), steps=2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double()


def batch(iteration, kind=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64).to(kind)
    return Batch(images, torch.arange(6) % 5, torch.arange(6), seed=2, iteration=iteration)


@pytest.mark.parametrize("through", ["loss", "losses"])
def test_running_statistics_normalise_from_the_start_on_and_stay(through):
    method, model = ConsistentNorm(start=5), network()
    for iteration, consistent in ((4, False), (5, True), (100, True)):
        given, expected = batch(iteration), copy.deepcopy(model)
        expected.train(not consistent)
        loss = method.loss(model, given) if through == "loss" else next(iter(list(method.losses(model, given))))
        torch.testing.assert_close(loss, cross_entropy(expected(given.images), given.labels))
        for one, other in zip(model.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(one, other)
        assert type(model[1]) is nn.BatchNorm2d
        assert model[1].training


def test_it_goes_with_other_methods():
    given = batch(9)
    for inside in (Adversarial(ATTACK), WeightPerturbation(inside=Adversarial(ATTACK))):
        expected = inside.loss(network().eval(), given)
        model = network()
        torch.testing.assert_close(ConsistentNorm(0, inside).loss(model, given), expected)
        assert model[1].num_batches_tracked == 0
    around = WeightPerturbation(inside=ConsistentNorm(0, Adversarial(ATTACK)))
    torch.testing.assert_close(around.loss(network(), given), expected)


def test_all_updates_of_free_training_are_consistent():
    method, model = ConsistentNorm(0, Free(Linf(0.1), replays=3)), network()
    assert method.updates == 3
    for loss in method.losses(model, batch(0)):
        loss.backward()
    assert model[1].num_batches_tracked == 0
    assert type(model[1]) is nn.BatchNorm2d


def test_the_backward_pass_is_consistent_where_it_computes_activations_again():
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = BottleneckResNet(5, depth=(1, 1), width=4, stem="cifar", size=8, checkpointing=checkpointing)
        model.train()
        method = ConsistentNorm(0, Adversarial(ATTACK))
        with ExitStack() as until_done:
            for loss in method.losses(method.prepare(model, until_done), batch(0, torch.float32)):
                loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(UsageError, match="put consistent-norm around the other methods"):
        Adversarial(ATTACK, inside=ConsistentNorm(0)).loss(model, batch(0, torch.float32))


def test_a_model_without_batch_norm_is_refused_before_training():
    with pytest.raises(UsageError, match="no batch norm"), ExitStack() as until_done:
        ConsistentNorm(100, Plain()).prepare(nn.Linear(2, 2), until_done)
    with pytest.raises(UsageError, match="from 0 upwards, found -1"):
        ConsistentNorm(-1)
