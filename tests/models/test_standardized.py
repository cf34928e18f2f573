import pytest
import torch

from bessemer.errors import ImagesError
from bessemer.models import AlexNet, ResNet
from bessemer.models.standardized import CHUNK

both = pytest.mark.parametrize("kind", [AlexNet, ResNet])


@both
@pytest.mark.parametrize("floats", [False, True])
def test_learns_each_channels_mean_and_deviation_over_more_images_than_a_chunk(kind, floats):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (CHUNK + 7, 3, 32, 32), dtype=torch.uint8, generator=generator)
    levels[:, 1] //= 4
    model = kind(width=6)
    model.learn_statistics(levels / 255 if floats else levels)
    expected = levels.double() / 255
    found = model.normalize
    torch.testing.assert_close(found.mean.double().squeeze(), expected.mean((0, 2, 3)), rtol=0, atol=1e-6)
    deviation = expected.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(found.std.double().squeeze(), deviation, rtol=0, atol=1e-6)


def test_a_channel_that_does_not_vary_keeps_a_deviation_of_one_grey_level():
    model = ResNet(width=2)
    model.learn_statistics(torch.full((2, 3, 32, 32), 7, dtype=torch.uint8))
    torch.testing.assert_close(model.normalize.std.squeeze(), torch.full((3,), 1 / 255))


def test_statistics_are_saved_with_the_weights():
    first, second = ResNet(width=2).eval(), ResNet(width=2).eval()
    first.learn_statistics(torch.rand(3, 3, 32, 32))
    second.load_state_dict(first.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(first(images), second(images))


@both
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (3, 32, 32), (0, 3, 32, 32)], ids=str)
def test_statistics_of_other_images_are_refused(kind, shape):
    with pytest.raises(ImagesError, match=r"learns its channels' means from \(N, 3, 32, 32\) images"):
        kind(width=3).learn_statistics(torch.zeros(shape))
