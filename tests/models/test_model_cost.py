import pytest
import torch

from bessemer.models import BottleneckResNet, LeNet, SmallCNN
from bessemer.models.cost import cost


@pytest.mark.parametrize(
    ("make", "multiply_adds"),
    [
        (LeNet, 24**2 * 25 * 20 + 8**2 * 25 * 20 * 50 + 800 * 500 + 500 * 10),
        (SmallCNN, 9 * (26**2 * 32 + 24**2 * 32**2 + 10**2 * 32 * 64 + 8**2 * 64**2) + 1024 * 200 + 200**2 + 2000),
    ],
)
def test_counts_what_arithmetic_counts(make, multiply_adds):
    assert cost(make).multiply_adds == multiply_adds
    assert cost(make).parameters == sum(parameter.numel() for parameter in make().parameters())


def test_groups_strides_and_image_size_count():
    def make():
        return BottleneckResNet(3, depth=(1, 1), width=4, groups=2, width_per_group=3, stem="cifar", size=8)

    first = 64 * (4 * 6 + 6 * 3 * 9 + 6 * 16 + 4 * 16)  # the 3×3 convolution sees 3 of its 6 channels at a time
    second = 64 * 16 * 12 + 16 * (12 * 6 * 9 + 12 * 32 + 16 * 32)  # the stride is in the 3×3 convolution
    assert cost(make).multiply_adds == 64 * 27 * 4 + first + second + 32 * 3


def test_matrix_products_of_a_denoising_block_count():
    settings = {"depth": (1,), "width": 4, "stem": "cifar", "size": 8}
    more = cost(lambda: BottleneckResNet(**settings, denoising="gaussian")).multiply_adds
    plain = cost(lambda: BottleneckResNet(**settings)).multiply_adds
    # 64 positions of 16 channels: two embeddings of 8, the comparisons, the means, the last 1×1 convolution
    assert more - plain == 64 * (2 * 16 * 8 + 64 * 8 + 64 * 16 + 16 * 16)


def test_leaves_torchs_random_state_alone():
    before = torch.get_rng_state()
    cost(LeNet)
    assert torch.equal(torch.get_rng_state(), before)
