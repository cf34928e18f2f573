import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, linear, max_pool2d

from bessemer.models import SmallCNN


def test_computes_what_its_description_says():
    torch.manual_seed(0)
    model = SmallCNN(7).double().eval()
    nn.init.normal_(model.fc3.weight)
    state = model.state_dict()
    images = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    x = images
    for number in (1, 2, 3, 4):
        x = conv2d(x, state[f"conv{number}.weight"], state[f"conv{number}.bias"]).clamp(min=0)
        x = x if number % 2 else max_pool2d(x, 2)
    x = x.reshape(2, 64 * 4 * 4)
    for number in (1, 2):
        x = linear(x, state[f"fc{number}.weight"], state[f"fc{number}.bias"]).clamp(min=0)
    torch.testing.assert_close(model(images), linear(x, state["fc3.weight"], state["fc3.bias"]))


def test_starts_undecided_but_not_blind():
    torch.manual_seed(0)
    model = SmallCNN().eval()
    assert not model(torch.rand(3, 1, 28, 28)).any()
    model(torch.rand(3, 1, 28, 28))[:, 0].sum().backward()
    assert model.fc3.weight.grad.any()


@pytest.mark.parametrize(("layer", "fan_in"), [("conv1", 9), ("conv2", 288), ("conv3", 288), ("conv4", 576)])
def test_convolutions_start_with_the_variance_of_fan_in(layer, fan_in):
    torch.manual_seed(0)
    conv = getattr(SmallCNN(), layer)
    assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    assert not conv.bias.any()


def test_dropout_stands_between_the_hidden_layers():
    model, seen = SmallCNN(dropout=0.5), []
    model.dropout.register_forward_hook(lambda layer, given, result: seen.append(result))
    model.fc2.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    model(torch.rand(2, 1, 28, 28))
    assert seen[0] is seen[1]
