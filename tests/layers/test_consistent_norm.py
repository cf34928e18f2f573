"""Consistent batch norm against evaluation mode, in which everything else still trains."""

import copy

import pytest
import torch
from torch import nn

from bessemer.errors import UsageError
from bessemer.layers import consistent, mixture_norm, route, synchronized


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    model.append(nn.BatchNorm1d(5)).double()
    model(images(3))
    return model


def images(seed=1):
    return torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(model, call):
    model.zero_grad()
    x = images().requires_grad_()
    y = call(x)
    (y * torch.linspace(0, 6, y.numel(), dtype=y.dtype).view_as(y).cos()).sum().backward()
    return [y, x.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("kind", ["ordinary", "mixture", "shared statistics", "synchronised"])
def test_the_function_and_its_gradients_are_those_of_evaluation_mode(kind):
    model = network()
    if kind == "synchronised":
        synchronized(model)
    call = model
    if kind in ("mixture", "shared statistics"):
        mixture_norm(model, statistics=kind == "mixture")
        call = route(model, {"clean": 4, "adversarial": 3})
    buffers = copy.deepcopy(dict(model.named_buffers()))
    expected = step(model.eval(), call)
    model.train()
    ordinary = step(model, call)
    model.load_state_dict(buffers, strict=False)
    with consistent(model):
        model.train()
        for _ in range(2):
            for one, other in zip(step(model, call), expected, strict=True):
                assert torch.equal(one, other)
    assert not torch.allclose(ordinary[0], expected[0])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert all(module.training for module in model.modules())


def test_gamma_and_beta_learn():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with consistent(model):
        before = [parameter.clone() for parameter in model.parameters()]
        step(model, model)
        optimizer.step()
    for one, other in zip(before, model.parameters(), strict=True):
        assert not torch.equal(one, other)


def test_the_rest_of_the_model_still_trains():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).double()
    with consistent(model):
        assert (model(images()) == 0).float().mean() > 0.3


def test_it_ends_also_after_an_error_and_nests():
    model = network()
    kinds = [type(module) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())

    def failing():
        with consistent(model):
            with consistent(model):
                model(images())
            model(images())
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        failing()
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(images())
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])


def test_evaluation_mode_stays_evaluation_mode():
    model = network().eval()
    expected = model(images())
    with consistent(model):
        assert torch.equal(model(images()), expected)
    assert not any(module.training for module in model.modules())


# torch's own tracer instantiates autograd functions, and warns of it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled():
    model = network()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = copy.deepcopy(model).eval()(images())
    with consistent(model):
        torch.testing.assert_close(compiled(images()), expected)
    other = copy.deepcopy(model)
    torch.testing.assert_close(compiled(images()), other(images()))
    torch.testing.assert_close(model.state_dict(), other.state_dict())
    assert all(module.training for module in model.modules())


def test_what_cannot_be_consistent():
    with pytest.raises(UsageError, match="no batch norm"), consistent(nn.Linear(2, 2)):
        pass
    with (
        pytest.raises(UsageError, match="running statistics"),
        consistent(nn.BatchNorm1d(2, track_running_stats=False)),
    ):
        pass
