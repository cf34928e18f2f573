import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, linear

from bessemer.errors import UsageError
from bessemer.models import PreActResNet
from bessemer.models.cost import cost


def counted(width, plan, classes):
    """Parameters by arithmetic, layer by layer."""
    total, channels = 27 * width, width
    for stage, blocks in enumerate(plan):
        out = width << stage
        for _ in range(blocks):
            total += 9 * channels * out + 9 * out * out + 2 * channels + 2 * out
            total += channels * out if channels != out else 0
            channels = out
    return total + 2 * channels + channels * classes + classes


@pytest.mark.parametrize(("depth", "plan"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
@pytest.mark.parametrize("width", [64, 5])
def test_has_as_many_parameters_as_its_layers_add_up_to(depth, plan, width):
    assert cost(lambda: PreActResNet(depth=depth, width=width)).parameters == counted(width, plan, 10)


def test_has_the_published_size():
    # 11,171,146 is what implementations without the last batch norm have
    assert cost(PreActResNet).parameters == 11_171_146 + 2 * 512


def test_computes_what_its_description_says():
    torch.manual_seed(0)
    model = PreActResNet(5, width=3).double()
    for module in model.modules():  # so that no batch norm is the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    state = model.eval().state_dict()

    def active(x, norm):
        names = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(state[f"{norm}.{name}"] for name in names)).clamp(min=0)

    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    x = conv2d(images, state["stem.weight"], padding=1)
    for stage in range(4):
        for place in range(2):
            name, stride = f"stages.{stage}.{place}", 2 if stage and not place else 1
            first = active(x, f"{name}.norm1")
            y = active(conv2d(first, state[f"{name}.conv1.weight"], None, stride, 1), f"{name}.norm2")
            y = conv2d(y, state[f"{name}.conv2.weight"], None, 1, 1)
            x = y + (conv2d(first, state[f"{name}.short.weight"], None, stride) if stride == 2 else x)
    expected = linear(active(x, "norm").mean((2, 3)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("settings", "name"), [({"depth": 20}, "depth"), ({"width": 0}, "width")], ids=str)
def test_impossible_settings_are_refused(settings, name):
    with pytest.raises(UsageError, match=f"PreActResNet: {name} should be"):
        PreActResNet(**settings)
