import math

import pytest
import torch
from torch import nn

from bessemer.attacks import PGD
from bessemer.purification.sparse_coding.data import SparseCoding
from bessemer.purification.sparse_coding.dense_direction import DenseDirection
from bessemer.purification.sparse_coding.standing import Boxed, after, after_standard, attacks, right
from bessemer.threat import L1, L2, Linf

SOURCE = SparseCoding(32, 4, margin=0.5)


class Dense(nn.Module):
    """The linear classifier that reads <M w*, x>."""

    def forward(self, inputs):
        half = (inputs @ (SOURCE.signal @ SOURCE.atoms))[:, None] / 2
        return torch.cat([-half, half], 1)


@pytest.fixture(scope="module")
def samples():
    return SOURCE.draw(300, 1)


def test_a_linear_model_stands_where_its_margin_is_larger_than_the_radius(samples):
    radius = 0.15
    ball = L2(radius, box=None)
    scores = samples.inputs @ (SOURCE.signal @ SOURCE.atoms)
    expected = (2 * samples.labels - 1) * scores > radius * math.sqrt(32)
    for attack in attacks(SOURCE, ball).values():
        assert torch.equal(after(attack, Dense(), samples.inputs, samples.labels), expected)
    standing = after_standard(
        Dense(), samples.inputs, samples.labels, ball, right(Dense(), samples.inputs, samples.labels)
    )
    assert (standing != expected).sum() <= 1  # random search may miss a sample on the line, gradients do not


@pytest.mark.parametrize("threat", [L2(0.3, box=None), Linf(0.1, box=None), L1(0.5, box=None)])
def test_the_dense_step_is_as_long_as_the_radius_against_the_label(threat, samples):
    found = DenseDirection(threat, SOURCE.dense_direction)(Dense(), samples.inputs, samples.labels)
    change = found - samples.inputs
    assert torch.allclose(threat.size(change), torch.full((300,), threat.eps), rtol=1e-4)
    along = change @ SOURCE.dense_direction
    assert torch.equal(along > 0, samples.labels == 0)


def test_an_attack_that_leaves_its_ball_is_not_believed(samples):
    class Far(PGD):
        def search(self, oracle, images, goal, seed, index, until_success):
            return images + 1

    with pytest.raises(Exception, match="left its ball"):
        after(Far(L2(0.1, box=None)), Dense(), samples.inputs, samples.labels)


def test_moved_into_the_box_the_model_says_the_same(samples):
    boxed = Boxed(Dense(), samples.inputs, 0.2)
    pixels = boxed.pixels(samples.inputs)
    assert pixels.min() > 0
    assert pixels.max() < 1
    assert torch.allclose(boxed(pixels), Dense()(samples.inputs), atol=1e-4)
