"""Denoising blocks against their filters written out, position by position."""

import math

import pytest
import torch
from torch import nn

from bessemer.errors import UsageError
from bessemer.layers import Denoising
from bessemer.layers.denoising import FILTERS

N, H, W = 2, 4, 3


def features(channels=4):
    return torch.randn(N, channels, H, W, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def block(name, channels=4):
    torch.manual_seed(0)
    made = Denoising(channels, name).double()
    for parameter in made.filtered.parameters():
        nn.init.normal_(parameter)
    return made


def embedded(convolution, vector):
    return convolution.weight[:, :, 0, 0] @ vector


def window(row, column):
    rows = range(max(0, row - 1), min(H, row + 2))
    return [(i, j) for i in rows for j in range(max(0, column - 1), min(W, column + 2))]


def naive(name, filtered, x):
    """Each filter's own sum."""
    y = torch.empty_like(x)
    everywhere = [(i, j) for i in range(H) for j in range(W)]
    channels = x.shape[1]
    for n in range(N):
        for row, column in everywhere:
            here = x[n, :, row, column]
            places = everywhere if name in ("gaussian", "dot-product") else window(row, column)
            others = [x[n, :, i, j] for i, j in places]
            if name in ("gaussian", "bilateral"):
                theta = embedded(filtered.theta, here)
                alike = [
                    torch.exp(theta @ embedded(filtered.phi, other) / math.sqrt(channels // 2)) for other in others
                ]
                y[n, :, row, column] = sum(a * other for a, other in zip(alike, others, strict=True)) / sum(alike)
            elif name == "dot-product":
                y[n, :, row, column] = sum((here @ other) * other for other in others) / (H * W)
            elif name == "mean":
                y[n, :, row, column] = sum(others) / len(others)
            else:
                around = [
                    x[n, :, min(max(i, 0), H - 1), min(max(j, 0), W - 1)]
                    for i in range(row - 1, row + 2)
                    for j in range(column - 1, column + 2)
                ]
                y[n, :, row, column] = torch.stack(around).sort(0).values[4]
    return y


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("channels", [4, 15])
def test_the_filter_by_definition(name, channels):
    """With 15 channels, more than positions, the dot product takes the other order."""
    made = block(name, channels)
    x = features(channels)
    torch.testing.assert_close(made.filtered(x), naive(name, made.filtered, x))


@pytest.mark.parametrize("name", FILTERS)
def test_the_block_by_definition(name):
    made = block(name)
    nn.init.uniform_(made.norm.weight)
    x = features()
    changed = torch.einsum("oc,nchw->nohw", made.conv.weight[:, :, 0, 0], naive(name, made.filtered, x))
    deviation = (changed.var((0, 2, 3), correction=0) + 1e-5).sqrt()
    standard = (changed - changed.mean((0, 2, 3)).view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)
    torch.testing.assert_close(made(x), x + standard * made.norm.weight.view(1, -1, 1, 1))


@pytest.mark.parametrize("name", FILTERS)
def test_before_training_it_changes_nothing_but_can_learn(name):
    made = block(name)
    x = features()
    assert torch.equal(made(x), x)
    (made(x) * features()).sum().backward()
    assert made.norm.weight.grad.abs().min() > 0


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("channels", [2, 13])
def test_gradients_by_finite_differences(name, channels):
    made = block(name, channels)
    assert torch.autograd.gradcheck(made.filtered, features(channels)[:1].requires_grad_())


def test_constant_features_stay_what_they_are():
    x = torch.full((1, 4, 5, 5), 3.0, dtype=torch.float64)
    for name in ("gaussian", "bilateral", "mean", "median"):
        torch.testing.assert_close(block(name).filtered(x), x)


def test_a_single_bright_position_is_removed_by_the_median():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 9
    assert not block("median", 1).filtered(x).any()


@pytest.mark.parametrize("name", FILTERS)
def test_autocast_and_channels_last(name):
    made = block(name).float().to(memory_format=torch.channels_last)
    nn.init.ones_(made.norm.weight)
    x = features().float().contiguous(memory_format=torch.channels_last)
    expected = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert (found - expected).norm() < 0.05 * expected.norm()


# torch's own tracer instantiates autograd functions, and warns of it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", FILTERS)
def test_compiled(name):
    made = block(name)
    torch._dynamo.reset()
    compiled = torch.compile(made.filtered, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features()), made.filtered(features()))


def test_embeddings_start_small_and_halve_the_channels():
    torch.manual_seed(0)
    made = Denoising(64)
    for embedding in (made.filtered.theta, made.filtered.phi):
        assert embedding.weight.shape == (32, 64, 1, 1)
        assert abs(embedding.weight.std().item() - 0.01) < 0.001
    assert sum(parameter.numel() for parameter in made.parameters()) == 2 * 32 * 64 + 64 * 64 + 2 * 64
    assert sum(parameter.numel() for parameter in Denoising(64, "median").parameters()) == 64 * 64 + 2 * 64


def test_what_is_not_a_block():
    with pytest.raises(UsageError, match="did you mean 'gaussian'"):
        Denoising(4, "gausian")
    with pytest.raises(UsageError, match="cannot be halved"):
        Denoising(1)
