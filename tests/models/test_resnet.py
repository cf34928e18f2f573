"""Residual networks: published sizes, and the forward pass written out."""

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, linear

from bessemer.errors import UsageError
from bessemer.layers import Denoising
from bessemer.models import ResNet

# parameters that others count for the same networks: the CIFAR networks of He et al. (0.27 M, 0.85 M, 1.7 M) and
# ResNet-18 and -34 with a 3×3 stem
PUBLISHED = [(20, 16, 269_722), (56, 16, 853_018), (110, 16, 1_727_962), (18, 64, 11_173_962), (34, 64, 21_282_122)]


@pytest.mark.parametrize(("depth", "width", "parameters"), PUBLISHED)
def test_has_the_published_number_of_parameters(depth, width, parameters):
    assert sum(parameter.numel() for parameter in ResNet(depth=depth, width=width).parameters()) == parameters


@pytest.mark.parametrize("depth", [8, 18, 20, 34])
def test_is_as_deep_as_it_says(depth):
    layers = [module for module in ResNet(depth=depth, width=2).modules() if hasattr(module, "weight")]
    deep = [
        layer for layer in layers if layer.weight.dim() == 2 or (layer.weight.dim() == 4 and layer.padding != (0, 0))
    ]
    assert len(deep) == depth


@pytest.mark.parametrize("depth", [14, 18])
def test_computes_what_its_description_says(depth):
    torch.manual_seed(0)
    model = ResNet(depth=depth, width=4).double()
    for module in model.modules():  # so that no batch norm is the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    model.eval()
    state = model.state_dict()

    def step(x, conv, norm, stride=1):
        weight = state[f"{conv}.weight"]
        x = conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        return batch_norm(x, *(state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))

    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    x = step(images, "stem", "norm").clamp(min=0)
    for stage in range(3 if depth == 14 else 4):
        for place in range(2):
            name = f"stages.{stage}.{place}"
            stride = 2 if stage and not place else 1
            y = step(x, f"{name}.conv1", f"{name}.norm1", stride).clamp(min=0)
            y = step(y, f"{name}.conv2", f"{name}.norm2")
            if stride == 2 and depth == 18:
                x = step(x, f"{name}.short.0", f"{name}.short.1", 2)
            elif stride == 2:
                x = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(y[:, x.shape[1] :])], 1)
            x = (x + y).clamp(min=0)
    expected = linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("depth", [2, 7, 19, 0, 20.0])
def test_a_depth_that_is_none_is_refused(depth):
    with pytest.raises(UsageError, match="layers deep; depth should be 6n"):
        ResNet(depth=depth)


def test_an_impossible_width_is_refused():
    with pytest.raises(UsageError, match="ResNet: width should be a whole number"):
        ResNet(width=0)


@pytest.mark.parametrize(("depth", "filter", "first"), [(14, "gaussian", 2), (18, "mean", 1), (8, "dot-product", 3)])
def test_denoising_blocks_end_stages_and_leave_everything_else_as_it_was(depth, filter, first):
    torch.manual_seed(0)
    plain = ResNet(depth=depth, width=4).eval()
    torch.manual_seed(0)
    denoising = ResNet(depth=depth, width=4, denoising=filter, denoise_from=first).eval()
    state, own = denoising.state_dict(), plain.state_dict()
    assert own.keys() < state.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)
    ends = [isinstance(stage[-1], Denoising) for stage in denoising.stages]
    assert ends == [number >= first for number in range(1, len(ends) + 1)]
    assert sum(isinstance(module, Denoising) for module in denoising.modules()) == sum(ends)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(denoising(images), plain(images))  # their gamma starts at 0
    for module in denoising.modules():
        if isinstance(module, Denoising):
            torch.nn.init.ones_(module.norm.weight)
    assert not torch.allclose(denoising(images), plain(images))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"denoising": "gauss"}, "did you mean 'gaussian'"),
        ({"denoising": "mean", "denoise_from": 4}, "denoise_from should be a stage from 1 to 3"),
        ({"denoise_from": 0}, "denoise_from should be a stage from 1 to 3"),
    ],
)
def test_denoising_that_cannot_be_is_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        ResNet(depth=8, width=4, **settings)
