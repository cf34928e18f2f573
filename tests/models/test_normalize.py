import pytest
import torch

from bessemer.errors import ImagesError, UsageError
from bessemer.models import Normalize

IMAGES = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def test_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    expected = torch.stack([(IMAGES[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Normalize(mean, std)(IMAGES), expected)


@pytest.mark.parametrize("shape", [(), (3,), (1,), (3, 1, 1), (1, 6, 5), (3, 6, 5)], ids=str)
def test_takes_statistics_of_every_shape_that_fits(shape):
    mean, std = torch.full(shape, 0.5), torch.full(shape, 0.25)
    torch.testing.assert_close(Normalize(mean, std)(IMAGES), (IMAGES - 0.5) / 0.25)


def test_statistics_are_saved_with_the_weights():
    saved = Normalize([0.1, 0.2, 0.3], 0.5).state_dict()
    loaded = Normalize([0.0, 0.0, 0.0], 1.0)
    loaded.load_state_dict(saved)
    assert torch.equal(loaded(IMAGES), Normalize([0.1, 0.2, 0.3], 0.5)(IMAGES))


def test_later_changes_to_the_callers_tensor_do_not_reach_the_layer():
    mean = torch.zeros(3)
    layer = Normalize(mean, 1.0)
    mean.fill_(5)
    assert torch.equal(layer(IMAGES), IMAGES)


@pytest.mark.parametrize("std", [0.0, -1.0, [1.0, 0.0, 1.0]])
def test_a_deviation_that_is_not_positive_is_refused(std):
    with pytest.raises(UsageError, match="std should be positive"):
        Normalize(0.0, std)


@pytest.mark.parametrize("mean", [[[0.1, 0.2]], [], float("nan")], ids=str)
def test_statistics_that_cannot_be_meant_are_refused(mean):
    with pytest.raises(UsageError, match="Normalize: mean"):
        Normalize(mean, 1.0)


def test_a_grey_image_is_refused_instead_of_becoming_three_channels():
    with pytest.raises(ImagesError, match=r"statistics of \(3, 1, 1\), not \(4, 1, 6, 5\)"):
        Normalize([0.1, 0.2, 0.3], 1.0)(IMAGES[:, :1])


def test_grey_levels_are_refused():
    with pytest.raises(ImagesError, match="uint8"):
        Normalize(0.5, 1.0)((IMAGES * 255).to(torch.uint8))
