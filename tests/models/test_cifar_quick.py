import numpy as np
import pytest
import torch
from scipy.signal import correlate

from bessemer.errors import ImagesError
from bessemer.models import CifarQuick
from bessemer.models.cifar_quick import CHUNK


def pool(x, reduce):
    """Caffe's 3×3 pooling with stride 2: sizes rounded up, windows cut off at the border."""
    places = range(0, x.shape[1] - 1, 2)
    return np.stack([np.stack([reduce(x[:, i : i + 3, j : j + 3], (1, 2)) for j in places], 1) for i in places], 1)


def caffe_cifar_quick(model, levels, mean_image):
    """The network of Caffe's prototxt on grey levels 0 … 255, written with NumPy and SciPy."""
    weight = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def convolve(x, name):
        x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
        maps = [correlate(x, kernel, mode="valid")[0] for kernel in weight[f"{name}.weight"]]
        return np.stack(maps) + weight[f"{name}.bias"][:, None, None]

    def relu(x):
        return np.maximum(x, 0)

    x = levels - mean_image
    x = relu(pool(convolve(x, "conv1"), np.max))
    x = pool(relu(convolve(x, "conv2")), np.mean)
    x = pool(relu(convolve(x, "conv3")), np.mean)
    assert x.shape == (64, 4, 4)
    x = weight["ip1.weight"] @ x.ravel() + weight["ip1.bias"]
    return weight["ip2.weight"] @ x + weight["ip2.bias"]


def test_computes_what_caffes_definition_computes():
    random = np.random.default_rng(0)
    training = random.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    model = CifarQuick().double().eval()
    with torch.no_grad():
        model.conv1.weight.mul_(1000)  # at Caffe's 0.0001 the biases of ip1 and ip2 would be all that is seen
    model.learn_statistics(torch.from_numpy(training))
    levels = random.integers(0, 256, (2, 3, 32, 32)).astype(float)
    expected = np.stack([caffe_cifar_quick(model, image, training.mean(0)) for image in levels])
    logits = model(torch.from_numpy(levels / 255)).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


DEVIATIONS = [("conv1", 0.0001), ("conv2", 0.01), ("conv3", 0.01), ("ip1", 0.1), ("ip2", 0.1)]


@pytest.mark.parametrize(("layer", "deviation"), DEVIATIONS)
def test_weights_start_with_caffes_deviations(layer, deviation):
    torch.manual_seed(0)
    module = getattr(CifarQuick(), layer)
    assert module.weight.std().item() == pytest.approx(deviation, rel=0.1)
    assert abs(module.weight.mean().item()) < 0.1 * deviation
    assert not module.bias.any()


def test_the_mean_image_is_zero_until_it_is_learned():
    assert not CifarQuick().normalize.mean.any()


@pytest.mark.parametrize("kind", ["grey levels", "floats"])
def test_learns_the_mean_image_of_more_images_than_a_chunk(kind):
    images = torch.randint(0, 256, (CHUNK + 7, 3, 32, 32), dtype=torch.uint8)
    expected = (images.double() / 255).mean(0)
    model = CifarQuick()
    model.learn_statistics(images if kind == "grey levels" else images / 255)
    torch.testing.assert_close(model.normalize.mean.double(), expected, rtol=0, atol=1e-7)


def test_the_mean_image_is_saved_with_the_weights():
    model = CifarQuick().eval()
    model.learn_statistics(torch.rand(3, 3, 32, 32))
    loaded = CifarQuick().eval()
    loaded.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (3, 32, 32), (0, 3, 32, 32)], ids=str)
def test_statistics_of_other_images_are_refused(shape):
    with pytest.raises(ImagesError, match="mean image"):
        CifarQuick().learn_statistics(torch.zeros(shape))
