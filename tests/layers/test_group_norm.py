"""Group norm against its definition, sample by sample and group by group."""

import pytest
import torch
from torch import nn

from bessemer.errors import UsageError
from bessemer.layers import group_norm, mixture_norm


@pytest.mark.parametrize(
    ("channels", "asked", "groups"),
    [
        (64, 32, 32),
        (256, 32, 32),
        (96, 32, 32),
        (80, 32, 20),
        (48, 32, 24),
        (16, 32, 8),
        (16, 4, 4),
        (6, 32, 3),
        (7, 32, 1),
        (2, 32, 1),
        (1, 32, 1),
    ],
)
def test_groups_divide_the_channels_and_hold_two_or_more(channels, asked, groups):
    assert group_norm(nn.BatchNorm2d(channels), asked).num_groups == groups


def test_the_layer_by_definition():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, eps=1e-3).double()
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    weight, bias = norm.weight, norm.bias
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ModuleDict({"inner": norm})["inner"]).double()
    assert group_norm(model) is model
    x = torch.rand(4, 6, 3, 3, dtype=torch.float64)
    expected = torch.empty_like(x)
    for sample in range(4):
        for group in range(3):
            values = x[sample, 2 * group : 2 * group + 2]
            standard = (values - values.mean()) / (values.var(correction=0) + 1e-3).sqrt()
            for inside in range(2):
                channel = 2 * group + inside
                expected[sample, channel] = standard[inside] * weight[channel] + bias[channel]
    torch.testing.assert_close(model[1](x), expected)
    assert model[1].weight is weight
    assert model[1].bias is bias


def test_no_sample_depends_on_the_others():
    torch.manual_seed(0)
    model = group_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).double())
    x = torch.rand(4, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x)[:2], model(x[:2]))
    torch.testing.assert_close(model.eval()(x), model.train()(x))


def test_without_gamma_and_beta():
    layer = group_norm(nn.BatchNorm1d(8, affine=False)).eval()
    assert list(layer.parameters()) == []
    assert layer(torch.rand(2, 8)).shape == (2, 8)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_cannot_be_converted():
    with pytest.raises(UsageError, match="no batch norm"):
        group_norm(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="1 group or more"):
        group_norm(nn.BatchNorm2d(4), 0)
    with pytest.raises(UsageError, match="keep_branch"):
        group_norm(mixture_norm(nn.BatchNorm2d(4)))
    with pytest.raises(UsageError, match="call the model once"):
        group_norm(nn.LazyBatchNorm2d())
