"""Balancing that sets itself: epsilon from a target, beta from the norms."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bessemer.errors import BalanceError
from bessemer.layers import balance, rates, report_misclassified
from bessemer.layers.adaptive import epsilon_for, norm_keeping
from bessemer.layers.balance import sample_norms


def effective_share(norms, epsilons):
    """(sum c)^2 / (N sum c^2), one sample after the other."""
    largest, c = max(norms), []
    for norm, epsilon in zip(norms, epsilons, strict=True):
        r = norm / largest
        c.append(r * (1 / r) ** (epsilon * (1 - r)) if r > 0 else 0.0)
    return sum(c) ** 2 / (len(c) * sum(one**2 for one in c))


def first_epsilon(norms, wanted, limits):
    """By a plain walk in small steps, with nothing in common with the search."""
    steps = 2000
    shares = (effective_share(norms, [t / steps * limit for limit in limits]) for t in range(steps + 1))
    return next((t / steps for t, share in enumerate(shares) if share >= wanted), 1.0)


NORMS = {
    "ordinary": lambda: torch.rand(64, dtype=torch.float64),
    "stalled": lambda: 10 ** (-12 * torch.rand(64, dtype=torch.float64)),
    "one sample alone": lambda: torch.cat([torch.ones(1), torch.full((49,), 1e-20)]).double(),
    "down to the last float": lambda: 10 ** (-36 * torch.rand(100, dtype=torch.float64)),
    "half without gradient": lambda: torch.cat([torch.zeros(32), torch.rand(32) ** 8]).double(),
}


@pytest.mark.parametrize("wanted", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("limit", [0.8, 1.0])
@pytest.mark.parametrize("kind", NORMS)
def test_epsilon_is_the_first_that_reaches_the_target(kind, limit, wanted):
    torch.manual_seed(0)
    norms = NORMS[kind]()
    found = epsilon_for(wanted, norms, limit).item()
    assert abs(found - limit * first_epsilon(norms.tolist(), wanted, [limit] * len(norms))) < 1e-3
    if 0 < found < limit:
        assert abs(effective_share(norms.tolist(), [found] * len(norms)) / wanted - 1) < 0.01


def test_epsilon_is_zero_where_enough_contribute_and_the_largest_where_none_is_enough():
    equal = torch.ones(10, dtype=torch.float64)
    assert epsilon_for(0.5, equal, 1.0) == 0
    assert epsilon_for(1.0, equal, 1.0) == 0
    assert epsilon_for(1.0, torch.rand(10, dtype=torch.float64), 0.9) == 0.9
    assert epsilon_for(0.5, torch.eye(10, dtype=torch.float64)[0], 0.9) == 0.9
    assert epsilon_for(0.5, torch.ones(1, dtype=torch.float64), 1.0) == 0
    assert epsilon_for(0.5, torch.zeros(10, dtype=torch.float64), 1.0).isfinite()


def test_epsilon_does_not_depend_on_the_scale_of_the_gradients():
    norms = NORMS["stalled"]()
    torch.testing.assert_close(epsilon_for(0.5, norms, 1.0), epsilon_for(0.5, norms * 1e-18, 1.0), rtol=0, atol=1e-12)


def test_samples_can_have_limits_of_their_own():
    torch.manual_seed(0)
    norms = NORMS["stalled"]()
    limits = torch.where(torch.rand(64) < 0.3, 0.5, 1.0).double()
    found = epsilon_for(0.5, norms, limits)
    torch.testing.assert_close(found, found.max() * limits)
    assert abs(found.max() - first_epsilon(norms.tolist(), 0.5, limits.tolist())) < 1e-3
    assert found.max() > epsilon_for(0.5, norms, 1.0) + 0.01


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 5)
    ).double()
    with torch.no_grad():
        model[5].weight *= 5  # sure of what it says
    return model


@pytest.fixture
def batch():
    """Images and labels; every other one is classified correctly, some of them with great confidence."""
    torch.manual_seed(1)
    images = 10 * torch.randn(12, 1, 6, 6, dtype=torch.float64) * torch.linspace(0.1, 2, 12).view(-1, 1, 1, 1)
    labels = network()(images).argmax(1)
    labels[::2] = (labels[::2] + 1) % 5
    return images, labels


def gradients(model, images, labels):
    model.zero_grad()
    cross_entropy(report_misclassified(model, model(images), labels), labels).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def norms_of(model, images, labels):
    """The samples' norms at the output of each layer, by hooks."""
    found = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, output, name=name: (
                output.register_hook(lambda gradient: found.__setitem__(name, sample_norms(gradient))) and None
            )
        )
        for name, layer in model.named_children()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    gradients(model, images, labels)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("misclassified", [1.0, 0.5])
def test_a_target_is_the_fixed_rule_at_each_layers_own_epsilon(misclassified, batch):
    model = network()
    wrong = model(batch[0]).argmax(1) != batch[1]
    limits = 0.9 * (1 + (misclassified - 1) * wrong.double())
    epsilons = {name: epsilon_for(0.8, norms, limits).max().item() for name, norms in norms_of(model, *batch).items()}
    assert len(set(epsilons.values())) == 3
    assert wrong.any()
    with balance(model, 1.3, epsilons, misclassified):
        expected = gradients(model, *batch)
    with balance(model, 1.3, 0.9, misclassified, contributing=0.8):
        found = gradients(model, *batch)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize("contributing", [0.0, 0.8])
def test_keeping_the_norm_multiplies_beta_in_each_layer(contributing, batch):
    model = network()
    betas = {}
    for name, norms in norms_of(model, *batch).items():
        epsilon = epsilon_for(contributing, norms, 0.815) if contributing else 0.815
        scaled = norms * rates(norms, 1.0, epsilon)
        betas[name] = 1.3 * math.sqrt(sum(norms.square().tolist()) / sum(scaled.square().tolist()))
    with balance(model, betas, contributing=contributing, keep_norm=False):
        expected = gradients(model, *batch)
    with balance(model, 1.3, contributing=contributing, keep_norm=True):
        found = gradients(model, *batch)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=0)


def test_the_norm_is_kept_exactly_where_samples_are_orthogonal():
    """Each sample has an input of its own direction, so the norms of the parts add up as the estimate assumes."""
    model = nn.Linear(8, 3, bias=False).double()
    weight = torch.logspace(0, -6, 8, dtype=torch.float64)[:, None]
    found = []
    for keep in (False, True):
        model.zero_grad()
        with balance(model, keep_norm=keep):
            (model(torch.eye(8, dtype=torch.float64)) * weight).sum().backward()
        found.append(model.weight.grad.norm())
    torch.testing.assert_close(found[1], (weight.square().sum() * 3).sqrt()[()])
    assert found[0] > 1.2 * found[1]


def test_the_flow_on_is_the_original_one_also_where_rates_are_enormous():
    """A sample's gradient is 1e-37 of the largest: epsilon goes to 1, and the reciprocal of its rate to nearly zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    weight = torch.tensor([10.0, 1e-30, 1e-37, 0.0])[:, None]
    flows = []
    for contributing in (0.0, 1.0):
        x = torch.ones(4, 4, requires_grad=True)
        with balance(model, 1.0, 1.0 if contributing else 0.0, contributing=contributing):
            (model(x) * weight).sum().backward()
        flows.append(x.grad)
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(flows[0], flows[1], rtol=1e-3, atol=1e-38)


# torch's own tracer instantiates autograd functions, and warns of it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("misclassified", [1.0, 0.5])
def test_compiled_models_get_the_same_gradients(misclassified, batch):
    model = network()
    settings = {"misclassified": misclassified, "contributing": 0.8, "keep_norm": True}
    with balance(copied := copy.deepcopy(model), **settings):
        expected = gradients(copied, *batch)
    torch._dynamo.reset()
    with balance(model, **settings):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            model.zero_grad()
            cross_entropy(report_misclassified(model, compiled(batch[0]), batch[1]), batch[1]).backward()
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=0)


def test_no_gradient_at_all_stays_finite(batch):
    model = network()
    with balance(model, contributing=0.5, keep_norm=True):
        (model(batch[0]) * 0).sum().backward()
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    assert norm_keeping(torch.zeros(3), torch.zeros(3)) == 1


def test_nonsense_is_refused():
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(BalanceError, match="share of the batch"):
            balance(nn.Linear(2, 2), contributing=share)
