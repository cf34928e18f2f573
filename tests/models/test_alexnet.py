"""AlexNet: against its layers written out with plain convolutions, and what it costs."""

import pytest
import torch
from torch.nn.functional import conv2d, linear, max_pool2d
from torch.utils.flop_counter import FlopCounterMode

from bessemer.errors import UsageError
from bessemer.models import AlexNet


def test_computes_what_its_description_says():
    model = AlexNet(width=6).double().eval()
    model.learn_statistics(torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8))
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    weight = dict(model.named_parameters())

    def convolve(x, number, stride=1):
        w = weight[f"conv{number}.weight"]
        return conv2d(x, w, weight[f"conv{number}.bias"], stride, (w.shape[-1] - 1) // 2).clamp(min=0)

    def pool(x):
        return max_pool2d(x, 3, 2, 1)

    x = (images - model.normalize.mean) / model.normalize.std
    x = convolve(x, 1, 2)
    assert x.shape == (2, 6, 16, 16)
    x = pool(convolve(pool(x), 2))
    x = pool(convolve(convolve(convolve(x, 3), 4), 5)).flatten(1)
    assert x.shape == (2, 16 * 4)
    x = linear(x, weight["fc6.weight"], weight["fc6.bias"]).clamp(min=0)
    torch.testing.assert_close(model(images), linear(x, weight["fc7.weight"], weight["fc7.bias"]))


@pytest.mark.parametrize(("width", "millions"), [(96, 98.8), (24, 7.9)])
def test_costs_what_its_docstring_says(width, millions):
    with FlopCounterMode(display=False) as counted:
        AlexNet(width=width)(torch.rand(1, 3, 32, 32))
    assert counted.get_total_flops() / 2e6 == pytest.approx(millions, abs=0.05)


def test_layers_keep_the_ratio_of_2012():
    layers = [AlexNet().get_submodule(f"conv{number}") for number in range(1, 6)]
    assert [layer.out_channels for layer in layers] == [96, 256, 384, 384, 256]
    assert [layer.kernel_size[0] for layer in layers] == [11, 5, 3, 3, 3]


@pytest.mark.parametrize("width", [0, 2, 24.0, True])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(UsageError, match="AlexNet: width should be a whole number from 3 upwards"):
        AlexNet(width=width)
