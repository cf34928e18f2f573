"""Convolutional sparse codes against scikit-learn's lasso over the dictionary written out, and planted codes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch.nn.functional import conv_transpose2d

from bessemer.errors import ImagesError, UsageError
from bessemer.purification.reconstruction import (
    Shifts,
    duality_gap,
    random_filters,
    reconstruct,
    sparse_codes,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def written_out(dictionary, shape):
    """The dictionary as a matrix, a column an atom at a place."""
    codes = dictionary.correlate(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    alone = torch.eye(codes.numel(), dtype=torch.float64).view(-1, *codes)
    return conv_transpose2d(alone, dictionary.atoms, padding=dictionary.padding).flatten(1).T


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(8, 8), (9, 8), (7, 9)])
def test_synthesis_is_the_transposed_convolution_and_the_adjoint(size, shape):
    dictionary = Shifts(torch.randn(6, 3, size, size, dtype=torch.float64))
    images = torch.randn(2, 3, *shape, dtype=torch.float64)
    correlations = dictionary.correlate(images)
    codes = torch.randn_like(correlations)
    made = dictionary.synthesise(codes)
    torch.testing.assert_close(made, conv_transpose2d(codes, dictionary.atoms, padding=size // 2))
    torch.testing.assert_close((made * images).sum(), (codes * correlations).sum())


def test_every_shift_is_there():
    """An atom alone at a place is the filter centred there, cut off at the border."""
    filters = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    matrix = written_out(Shifts(filters), (1, 5, 5)).T.view(2, 5, 5, 5, 5)
    framed = torch.zeros(2, 5, 5, 7, 7, dtype=torch.float64)
    for y in range(5):
        for x in range(5):
            framed[:, y, x, y : y + 3, x : x + 3] = filters[:, 0] / filters.flatten(1).norm(dim=1).view(2, 1, 1)
    torch.testing.assert_close(matrix, framed[..., 1:-1, 1:-1])


def test_curvature_bounds_the_largest_eigenvalue():
    dictionary = Shifts(torch.randn(4, 2, 3, 3, dtype=torch.float64))
    largest = float(torch.linalg.matrix_norm(written_out(dictionary, (2, 7, 6)), 2) ** 2)
    assert largest <= dictionary.curvature(torch.zeros(1, 2, 7, 6, dtype=torch.float64)) <= 1.03 * largest


@pytest.mark.parametrize("penalty", [0.02, 0.1, 0.5])
def test_codes_are_scikit_learns_lasso(penalty):
    dictionary = Shifts(torch.randn(5, 3, 3, 3, dtype=torch.float64))
    targets = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    codes, left = sparse_codes(targets, dictionary, penalty, steps=20_000, gap=1e-12)
    assert left <= 1e-12
    matrix = written_out(dictionary, (3, 6, 6)).numpy()
    for target, code in zip(targets, codes, strict=True):
        lasso = Lasso(alpha=penalty / len(matrix), fit_intercept=False, tol=1e-12, max_iter=100_000)
        expected = lasso.fit(matrix, target.numpy().ravel()).coef_
        np.testing.assert_allclose(code.numpy().ravel(), expected, atol=1e-4)
        assert np.array_equal(np.abs(code.numpy().ravel()) > 1e-4, np.abs(expected) > 1e-4)


def test_the_gap_bounds_the_distance_from_the_optimum():
    dictionary = Shifts(torch.randn(5, 1, 3, 3, dtype=torch.float64))
    targets, penalty = torch.randn(4, 1, 6, 6, dtype=torch.float64), 0.3

    def objective(codes):
        fit = (targets - dictionary.synthesise(codes)).flatten(1).square().sum(1) / 2
        return (fit + penalty * codes.flatten(1).abs().sum(1)) / (targets.flatten(1).square().sum(1) / 2)

    best, _ = sparse_codes(targets, dictionary, penalty, steps=5000, gap=1e-13)
    for steps in (1, 5, 30):
        codes, left = sparse_codes(targets, dictionary, penalty, steps=steps, gap=0)
        gaps = duality_gap(targets, dictionary, codes, penalty)
        assert left == gaps.max()
        assert (gaps >= objective(codes) - objective(best) - 1e-12).all()


def test_a_penalty_above_every_correlation_leaves_nothing():
    dictionary = Shifts(torch.randn(3, 1, 3, 3))
    targets = torch.randn(2, 1, 6, 6)
    most = float(dictionary.correlate(targets).abs().max())
    assert sparse_codes(targets, dictionary, 1.001 * most)[0].count_nonzero() == 0
    assert sparse_codes(targets, dictionary, 0.99 * most)[0].count_nonzero() > 0


def planted(share=0.02, count=6):
    """Images about mid-grey that a few filters make, and these filters."""
    filters = torch.randn(8, 3, 5, 5)
    filters -= filters.mean((2, 3), keepdim=True)
    codes = torch.randn(count, 8, 16, 16) * (torch.rand(count, 8, 16, 16) < share)
    images = Shifts(filters).synthesise(codes)
    return 0.5 + 0.4 * images / images.abs().max(), filters


def test_every_level_is_reached_and_errors_are_what_they_say():
    images, filters = planted()
    levels = (0.03, 0.005, 0.01)
    found = reconstruct(images, filters, levels)
    assert [one.asked for one in found] == list(levels)
    assert all(one.reached and abs(one.share / one.asked - 1) <= 0.02 and one.gap <= 1e-3 for one in found)
    apart = images - images.mean((2, 3), keepdim=True)
    for one in found:
        by_hand = (images - one.images).flatten(1).norm(dim=1) ** 2 / apart.flatten(1).norm(dim=1) ** 2
        torch.testing.assert_close(one.errors, by_hand, atol=1e-5, rtol=1e-4)
    dense, sparse, middle = found
    assert (dense.errors < middle.errors).all()
    assert (middle.errors < sparse.errors).all()


def test_the_filters_that_made_the_images_beat_random_ones():
    images, filters = planted()
    (own,), (other,) = reconstruct(images, filters, [0.015]), reconstruct(images, random_filters(filters), [0.015])
    assert own.reached
    assert other.reached
    assert own.errors.mean() < 0.1
    assert own.errors.mean() < 0.2 * other.errors.mean()


def test_a_level_no_code_can_have_is_owned_up_to():
    images = torch.rand(2, 1, 8, 8)
    (found,) = reconstruct(images, torch.randn(8, 1, 3, 3), [0.5], steps=50)
    assert not found.reached
    assert found.share < 0.5


def test_scale_and_empty_filters_do_not_matter():
    images, filters = planted(count=2)
    scaled = torch.cat([filters * torch.rand(8, 1, 1, 1), torch.zeros(1, 3, 5, 5)])
    (one,), (other,) = reconstruct(images, filters, [0.02]), reconstruct(images, scaled, [0.02])
    assert one.share == pytest.approx(other.share, rel=1e-3)
    torch.testing.assert_close(one.images, other.images, atol=1e-3, rtol=0)


def test_a_plain_image_is_its_colour():
    images = torch.cat([torch.full((1, 3, 8, 8), 0.25), torch.rand(1, 3, 8, 8)])
    (found,) = reconstruct(images, torch.randn(4, 3, 3, 3), [0.02])
    torch.testing.assert_close(found.images[0], images[0])
    assert found.errors[0] == 0


def test_random_filters_repeat_with_their_seed():
    like = torch.zeros(3, 1, 2, 2)
    assert torch.equal(random_filters(like, 1), random_filters(like, 1))
    assert not torch.equal(random_filters(like, 1), random_filters(like, 2))


def test_what_does_not_fit_is_refused():
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(ImagesError, match="channels"):
        reconstruct(images, torch.randn(4, 1, 3, 3))
    with pytest.raises(UsageError, match=r"0\.0405, not 4\.05"):
        reconstruct(images, torch.randn(4, 3, 3, 3), [4.05])
    with pytest.raises(UsageError, match="not all zero"):
        reconstruct(images, torch.zeros(4, 3, 3, 3))
