import copy

import pytest
import torch
from torch import nn

from bessemer.errors import UsageError
from bessemer.training.optimizers import SGD, Factor, parameter_groups


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 4, 3)).double()


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_follows_caffes_rule_written_out_when_the_rate_changes():
    model = small_model()
    optimizer = SGD(parameter_groups(model, [Factor("*.bias", lr=2, decay=0.5)]), 0.1, 0.9, 0.01)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    velocities = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step, rate in enumerate([0.1, 0.1, 0.03, 0.2]):
        for group in optimizer.param_groups:
            group["lr"] = rate
        give_gradients(model, step)
        for name, parameter in model.named_parameters():
            lr, decay = (2 * rate, 0.005) if name.endswith("bias") else (rate, 0.01)
            velocities[name] = 0.9 * velocities[name] + lr * (parameter.grad + decay * weights[name])
            weights[name] = weights[name] - velocities[name]
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("drop", [False, True])
def test_equals_torchs_order_until_the_rate_drops(drop):
    ours, theirs = small_model(), small_model()
    optimizers = [
        SGD(ours.parameters(), 0.1, 0.9, 0.01),
        torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=0.01),
    ]
    for step in range(4):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            if drop and step == 2:
                optimizer.param_groups[0]["lr"] = 0.01
            give_gradients(model, step)
            optimizer.step()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in pairs) != drop


@pytest.mark.parametrize("drop", [False, True])
def test_nesterovs_momentum_equals_torchs_until_the_rate_drops(drop):
    ours, theirs = small_model(), small_model()
    settings = {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    optimizers = [SGD(ours.parameters(), 0.1, **settings), torch.optim.SGD(theirs.parameters(), 0.1, **settings)]
    for step in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            if drop and step == 2:
                optimizer.param_groups[0]["lr"] = 0.01
            give_gradients(model, step)
            optimizer.step()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in pairs) != drop


def test_nesterovs_momentum_is_caffes_written_out_when_the_rate_changes():
    model = small_model()
    groups = parameter_groups(model, [Factor("*.bias", lr=2, decay=0)])
    optimizer = SGD(groups, 0.1, 0.9, 0.01, nesterov=True)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    velocities = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step, rate in enumerate([0.1, 0.03, 0.2]):
        for group in optimizer.param_groups:
            group["lr"] = rate
        give_gradients(model, step)
        for name, parameter in model.named_parameters():
            lr, decay = (2 * rate, 0) if name.endswith("bias") else (rate, 0.01)
            before = velocities[name]
            velocities[name] = 0.9 * before + lr * (parameter.grad + decay * weights[name])
            weights[name] = weights[name] - (1.9 * velocities[name] - 0.9 * before)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-13, atol=1e-13)


def test_a_state_from_before_there_was_nesterovs_momentum_goes_on_without_it():
    model = small_model()
    optimizer = SGD(model.parameters(), 0.1)
    give_gradients(model, 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        del group["nesterov"]
    optimizer.load_state_dict(state)
    optimizer.step()
    assert optimizer.param_groups[0]["nesterov"] is False


def test_momentum_is_nine_tenths_unless_said_otherwise():
    assert SGD(small_model().parameters(), 0.1).param_groups[0]["momentum"] == 0.9


def test_its_saved_state_goes_on_bit_for_bit():
    model = small_model().float()
    optimizer = SGD(parameter_groups(model, [Factor("*.bias", lr=2)]), 0.1, 0.9, 0.01)
    for step in range(3):
        give_gradients(model, step)
        optimizer.step()
    resumed = copy.deepcopy(model)
    second = SGD(parameter_groups(resumed, [Factor("*.bias", lr=2)]), 0.5, 0.0)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for network, its_optimizer in ((model, optimizer), (resumed, second)):
            give_gradients(network, step)
            its_optimizer.step()
    assert equal(model, resumed)


def test_a_loaded_velocity_lies_in_memory_as_its_weight_does():
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = SGD(layer.parameters(), 0.1)
    give_gradients(layer, 0)
    optimizer.step()
    state = optimizer.state_dict()
    for velocity in state["state"].values():
        velocity["velocity"] = velocity["velocity"].contiguous()
    optimizer.load_state_dict(state)
    assert optimizer.state[layer.weight]["velocity"].stride() == layer.weight.stride()


def test_parameters_without_a_gradient_stay_as_they_are():
    model = small_model()
    before = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), 0.1, weight_decay=0.1)
    give_gradients(model, 0)
    model[0].weight.grad = None
    optimizer.step()
    assert torch.equal(model[0].weight, before[0].weight)
    assert model[0].weight not in optimizer.state
    assert not torch.equal(model[2].weight, before[2].weight)


def test_no_gradients_at_all_change_nothing():
    model = small_model()
    before = copy.deepcopy(model)
    SGD(model.parameters(), 0.1).step()
    assert equal(model, before)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    weight = nn.Parameter(torch.tensor([2.0]))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert SGD([weight], 0.1).step(closure) == 4.0
    torch.testing.assert_close(weight.detach(), torch.tensor([1.6]))


def test_groups_hold_every_parameter_once():
    model = small_model()
    groups = parameter_groups(model, [Factor("*.bias", lr=2)])
    assert [(group["lr_factor"], group["decay_factor"], len(group["params"])) for group in groups] == [
        (1.0, 1.0, 2),
        (2.0, 1.0, 2),
    ]
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}


def test_the_factors_of_several_rules_multiply():
    groups = parameter_groups(small_model(), [Factor("*.bias", lr=2, decay=0), Factor("0.*", lr=0.25)])
    factors = {len(p.shape): (g["lr_factor"], g["decay_factor"]) for g in groups for p in g["params"][:1]}
    assert {(g["lr_factor"], g["decay_factor"]) for g in groups} == {(0.25, 1), (0.5, 0), (1, 1), (2, 0)}
    assert factors[4] == (0.25, 1)


def test_no_rules_make_one_plain_group():
    [group] = parameter_groups(small_model(), [])
    assert (group["lr_factor"], group["decay_factor"]) == (1, 1)


def test_a_rule_that_matches_nothing_is_refused():
    with pytest.raises(UsageError, match=r"'\*\.biases' matches none of the 4 parameters, named like 0\.weight"):
        parameter_groups(small_model(), [Factor("*.bias"), Factor("*.biases")])


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -0.1},
        {"lr": float("nan")},
        {"lr": 0.1, "momentum": 1.0},
        {"lr": 0.1, "weight_decay": -1.0},
        {"lr": 0.1, "momentum": 0, "nesterov": True},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError, match=list(settings)[-1]):
        SGD(small_model().parameters(), **settings)


def test_a_negative_factor_is_refused():
    with pytest.raises(UsageError, match=r"'\*\.bias': lr should be"):
        Factor("*.bias", lr=-2)
