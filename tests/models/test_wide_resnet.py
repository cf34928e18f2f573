import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, linear

from bessemer.errors import UsageError
from bessemer.models import WideResNet
from bessemer.models.cost import cost

# parameters that others count for the same networks; Zagoruyko and Komodakis print 36.5 M, 11.0 M, 8.9 M and 0.6 M
PUBLISHED = [(28, 10, 36_479_194), (34, 10, 46_160_474), (16, 8, 10_961_370), (40, 4, 8_949_210), (40, 1, 563_930)]


@pytest.mark.parametrize(("depth", "widen_factor", "parameters"), PUBLISHED)
def test_has_the_published_number_of_parameters(depth, widen_factor, parameters):
    assert cost(lambda: WideResNet(depth=depth, widen_factor=widen_factor)).parameters == parameters


def test_computes_what_its_description_says():
    torch.manual_seed(0)
    model = WideResNet(5, depth=16, widen_factor=1).double()
    for module in model.modules():  # so that no batch norm is the identity
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    state = model.eval().state_dict()

    def active(x, norm):
        names = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(state[f"{norm}.{name}"] for name in names)).clamp(min=0)

    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    x = conv2d(images, state["stem.weight"], padding=1)
    for stage in range(3):
        for place in range(2):
            name, stride = f"stages.{stage}.{place}", 2 if stage and not place else 1
            first = active(x, f"{name}.norm1")
            y = active(conv2d(first, state[f"{name}.conv1.weight"], None, stride, 1), f"{name}.norm2")
            y = conv2d(y, state[f"{name}.conv2.weight"], None, 1, 1)
            x = y + (conv2d(first, state[f"{name}.short.weight"], None, 2) if stride == 2 else x)
    expected = linear(active(x, "norm").mean((2, 3)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(model(images), expected)


def test_dropout_stands_before_the_second_convolution_of_every_block():
    model, seen = WideResNet(depth=10, widen_factor=1, dropout=0.5), []
    model.dropout.register_forward_hook(lambda layer, given, result: seen.append(result))
    seconds = [block.conv2 for stage in model.stages for block in stage]
    for conv in seconds:
        conv.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    model(torch.rand(2, 3, 32, 32))
    assert len(seen) == 2 * len(seconds) == 6
    assert all(dropped is given for dropped, given in zip(seen[::2], seen[1::2], strict=True))


@pytest.mark.parametrize("depth", [4, 9, 29, 28.0, True])
def test_a_depth_that_is_none_is_refused(depth):
    with pytest.raises(UsageError, match=r"depth should be 6n \+ 4"):
        WideResNet(depth=depth)


def test_an_impossible_width_is_refused():
    with pytest.raises(UsageError, match="widen_factor should be a whole number"):
        WideResNet(widen_factor=0)
