"""Each model against its formula in float64, and attacks against what a model is known to withstand."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e
from torch.func import functional_call, jacrev

from bessemer.attacks import PGD
from bessemer.errors import UsageError
from bessemer.purification.sparse_coding import comparisons as compared
from bessemer.purification.sparse_coding.data import SparseCoding, Stream
from bessemer.purification.sparse_coding.network import SymmetricReLU
from bessemer.threat import L2

SOURCE = SparseCoding(dim=96, sparsity=4, margin=1.0)
TAU = 0.3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def weighted(model):
    """The model in float64, with weights that are not zero."""
    for parameter in model.parameters():
        parameter.data.normal_()
    return model.double()


@pytest.mark.parametrize("degree", [2, 3])
def test_a_polynomial_written_out(degree):
    directions, inputs = torch.randn(5, 4), torch.randn(7, 4).double()
    model = weighted(compared.Polynomial(directions, degree, torch.randn(50, 4), scale=0.8))
    along = 0.8 * inputs.numpy() @ directions.double().numpy().T
    expected = 0.8 * inputs.numpy() @ model.linear.weight.detach().numpy()
    for power, readout in zip(range(2, degree + 1), model.readouts, strict=True):
        values = hermite_e.hermeval(along, [0] * power + [1])
        expected = expected + values @ readout.coefficients.detach().numpy()
    np.testing.assert_allclose(model.score(inputs).detach().numpy(), expected, rtol=1e-5)


def test_a_kernel_written_out():
    support, inputs = torch.randn(5, 4), torch.randn(7, 4).double()
    model = weighted(compared.Kernel(support, 3, torch.randn(50, 4), spread=1.5))
    values = [[(1 + float(x @ s) / 1.5) ** 3 - 1 for s in support.double()] for x in inputs]
    expected = np.array(values) @ model.readout.coefficients.detach().numpy()
    np.testing.assert_allclose(model.score(inputs).detach().numpy(), expected, rtol=1e-5)


def test_random_relu_features_are_the_networks_own():
    network = SymmetricReLU(4, 5, scale=1.0).double().eval()
    network.biases.fill_(0.7)
    directions, inputs = network.weight.detach(), torch.randn(7, 4).double()
    model = weighted(compared.RandomReLU(directions.float(), 0.7, torch.randn(50, 4)))
    model.directions = directions
    model.readout.weight.data = torch.linalg.solve(model.readout.unmix, torch.ones(5).double())
    torch.testing.assert_close(model.score(inputs), network.score(inputs))


def test_a_readout_sees_uncorrelated_features():
    features = torch.randn(4000, 6) @ torch.randn(6, 6) * torch.tensor([1e-3, 1, 1, 1, 1, 1e3])
    readout = compared.Readout(features)
    seen = (features @ readout.unmix).double()
    torch.testing.assert_close(seen.T @ seen / 4000, torch.eye(6).double(), atol=0.02, rtol=0)
    readout.weight.data.normal_()
    torch.testing.assert_close(readout(features), (seen @ readout.weight.double()).float(), atol=1e-3, rtol=1e-3)


def tangent_and_network():
    network = SymmetricReLU(6, 8, scale=1.0).double().eval()
    network.biases.uniform_(0, 1.5)
    model = compared.Tangent(network.weight.detach().float(), network.biases.float(), scale=0.4)
    model = weighted(model)
    model.initial, model.thresholds = network.weight.detach(), network.biases
    return model, network


def test_the_tangent_is_the_networks_jacobian():
    model, network = tangent_and_network()
    inputs = torch.randn(9, 6).double()

    def score(weight):
        half_logits = functional_call(network, {"weight": weight}, (inputs,))
        return 2 * half_logits[:, 1]

    jacobian = jacrev(score)(network.weight.detach())
    torch.testing.assert_close(model.score(inputs), 0.4 * (jacobian * model.weight).sum((1, 2)))
    assert 0.1 < (jacobian.abs().sum(2) > 0).double().mean() < 0.9


def test_a_tangent_without_thresholds_is_linear():
    model = weighted(compared.Tangent(torch.randn(8, 6), torch.zeros(8)))
    one, other = torch.randn(2, 5, 6).double().unbind()
    torch.testing.assert_close(model.score(one + 3 * other), model.score(one) + 3 * model.score(other))


def gated():
    """Right by 0.5 at x = (1.05, 1, 0, …); wrong by 0.5 once x_1 falls below 1, where nothing slopes towards it."""
    initial = torch.zeros(2, 300)
    initial[0, 0] = initial[1, 1] = 1
    model = compared.Tangent(initial, torch.tensor([1.0, 0.0]))
    model.weight.data[0, 1], model.weight.data[1, 1] = 1, -0.5
    inputs = torch.zeros(20, 300)
    inputs[:, :2] = torch.tensor([1.05, 1.0])
    return model, inputs, torch.ones(20, dtype=torch.int64)


def test_smooth_gates_find_what_plain_gradients_miss():
    model, inputs, labels = gated()
    torch.testing.assert_close(model.score(inputs), torch.full((20,), 0.5))
    shares = compared.withstood(model, inputs, labels, SparseCoding(300, 4), tau=0.3)
    assert shares["PGD"] == 1
    assert shares["smooth gates"] == shares["all"] == 0


def test_an_attack_through_gates_believes_the_model_alone():
    model, inputs, labels = gated()
    attack = model.through_gates(PGD(L2(0.04, box=None), steps=20), width=0.5)  # too small a ball to close the gate
    found = attack(model, inputs, labels)
    assert (model(found).argmax(1) == labels).all()
    assert (model.score(found) < model.score(inputs)).all()
    assert model.training


def test_a_linear_model_withstands_what_its_margin_says():
    samples = SOURCE.draw(400, seed=5)
    model = compared.Linear(96)
    model.weight.data = SOURCE.dense_direction + 0.05 * torch.randn(96)
    signs = 2 * samples.labels - 1
    distances = signs * model.score(samples.inputs).detach() / model.weight.detach().norm()
    shares = compared.withstood(model, samples.inputs, samples.labels, SOURCE, tau=0.12)
    expected = (distances > 0.12).float().mean().item()
    assert 0.05 < expected < 0.95
    assert shares["clean"] == pytest.approx((distances > 0).float().mean().item())
    assert shares["FGM"] == pytest.approx(expected, abs=0.003)
    assert shares["PGD"] == pytest.approx(expected, abs=0.01)
    assert shares["all"] <= min(shares["FGM"], shares["PGD"], shares["dense direction"])


def test_every_model_learns_and_is_attacked():
    source = SparseCoding(dim=48, sparsity=3, margin=1.0)
    stream = Stream(source, 100, seed=1, sample=2000)
    samples = source.draw(60, seed=2)
    for name, make in compared.comparisons(source, width=64).items():
        model = make()
        assert torch.equal(model(samples.inputs), torch.zeros(60, 2)), name
        compared.fit_comparison(model, stream, iterations=40)
        shares = compared.withstood(model, samples.inputs, samples.labels, source, TAU)
        assert shares["clean"] > 0.75, name
        assert ("smooth gates" in shares) == (name == "tangent kernel")
        assert shares["all"] <= min(shares.values()), name


def test_the_same_seed_makes_the_same_models():
    inputs = SOURCE.draw(5, seed=2).inputs
    for name, seeds in (("random features, degree 3", (0, 0)), ("tangent kernel", (3, 3))):
        one, other = (compared.comparisons(SOURCE, width=96, seed=seed)[name]() for seed in seeds)
        for model in (one, other):
            for number, parameter in enumerate(model.parameters()):
                parameter.data.fill_(0.1 + number)
        assert torch.equal(one(inputs), other(inputs))
    different = compared.comparisons(SOURCE, width=96, seed=4)["tangent kernel"]()
    assert not torch.equal(different.initial, one.initial)


def test_cubes_of_the_atoms_are_the_exception():
    stream, samples = Stream(SOURCE, 200, seed=1, sample=8000), SOURCE.draw(200, seed=2)
    makers, held = compared.comparisons(SOURCE, width=96), {}
    for name in ("linear", "cubes of the true atoms"):
        model = makers[name]()
        compared.fit_comparison(model, stream, iterations=60)
        compared.fit_comparison(model, stream, TAU, iterations=120)
        held[name] = compared.withstood(model, samples.inputs, samples.labels, SOURCE, TAU)["all"]
    assert held["linear"] < 0.2
    assert held["cubes of the true atoms"] > held["linear"] + 0.2


def test_watching_can_end_the_training():
    seen = []

    def watch(done, loss):
        seen.append((done, loss.item()))
        return done < 3

    model = compared.Linear(96)
    compared.fit_comparison(model, Stream(SOURCE, 50, seed=1), TAU, iterations=10, watch=watch)
    assert [done for done, _ in seen] == [1, 2, 3]
    assert seen[0][1] == pytest.approx(math.log(2))


def test_a_degree_that_is_not_offered_is_refused():
    with pytest.raises(UsageError, match="degree 1 is Linear"):
        compared.Polynomial(torch.randn(5, 4), 1, torch.randn(50, 4))
