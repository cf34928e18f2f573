import math

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from bessemer.models import LeNet


def caffe_lenet(model, levels):
    """The network of Caffe's prototxt on grey levels 0 … 255, written with NumPy and SciPy."""
    weight = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def convolve(x, name):
        maps = [correlate(x, kernel, mode="valid")[0] for kernel in weight[f"{name}.weight"]]
        return np.stack(maps) + weight[f"{name}.bias"][:, None, None]

    def pool(x):
        return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))

    x = levels * 0.00390625
    x = pool(convolve(x, "conv1"))
    x = pool(convolve(x, "conv2"))
    x = np.maximum(weight["ip1.weight"] @ x.ravel() + weight["ip1.bias"], 0)
    return weight["ip2.weight"] @ x + weight["ip2.bias"]


def test_computes_what_caffes_definition_computes():
    model = LeNet().double().eval()
    levels = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28)).astype(float)
    expected = np.stack([caffe_lenet(model, image) for image in levels])
    np.testing.assert_allclose(model(torch.from_numpy(levels / 255)).detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(("layer", "fan_in"), [("conv1", 25), ("conv2", 500), ("ip1", 800), ("ip2", 500)])
def test_weights_start_uniform_within_the_bound_of_fan_in_alone(layer, fan_in):
    torch.manual_seed(0)
    weight = getattr(LeNet(), layer).weight.detach()
    bound = math.sqrt(3 / fan_in)
    assert 0.98 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)  # a uniform's deviation
    assert not getattr(LeNet(), layer).bias.any()
