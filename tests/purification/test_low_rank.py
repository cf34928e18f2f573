"""The share of a change that an update of low rank holds, against numpy and planted ranks."""

import math

import numpy as np
import pytest
import torch

from bessemer.purification.low_rank import explained, explained_by_chance, ranks


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (12, 12), (1, 9)])
def test_the_shares_are_those_of_the_singular_values(shape):
    change = normal(*shape)
    squares = np.linalg.svd(change.numpy(), compute_uv=False) ** 2
    expected = [squares[:rank].sum() / squares.sum() for rank in ranks(shape)]
    assert explained(change, ranks(shape)) == pytest.approx(expected)


def test_no_update_of_that_rank_does_better():
    """The best of many descents on the two factors of a rank-2 update finds what the formula says."""
    change = normal(8, 15)
    factors = [normal(8, 2, seed=1).requires_grad_(), normal(2, 15, seed=2).requires_grad_()]
    optimizer = torch.optim.LBFGS(factors, max_iter=500, line_search_fn="strong_wolfe")

    def left():
        optimizer.zero_grad()
        rest = (change - factors[0] @ factors[1]).square().sum()
        rest.backward()
        return rest

    optimizer.step(left)
    found = 1 - left().item() / change.square().sum().item()
    assert explained(change, [2])[0] == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_planted_rank_is_seen_at_any_scale(scale):
    change = scale * normal(20, 3) @ normal(3, 50, seed=1)
    one, two, four, eight, sixteen = explained(change, ranks((20, 50)))
    assert one < two < four == pytest.approx(1)
    assert eight == pytest.approx(1)
    assert sixteen == pytest.approx(1)


def test_of_no_change_nothing_is_explained():
    assert all(math.isnan(share) for share in explained(torch.zeros(4, 6, dtype=torch.float64), [1, 2, 4]))


@pytest.mark.parametrize("shape", [(64, 576), (128, 64), (200, 200)])
def test_by_chance_is_what_random_matrices_give(shape):
    at = ranks(shape)
    drawn = np.mean([explained(normal(*shape, seed=seed), at) for seed in range(5)], axis=0)
    assert explained_by_chance(shape, at) == pytest.approx(drawn, abs=0.012)


@pytest.mark.parametrize("shape", [(1, 10), (10, 1), (3, 27), (16, 16)])
def test_by_chance_grows_to_all_at_full_rank(shape):
    least = min(shape)
    shares = explained_by_chance(shape, list(range(1, least + 1)))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(share >= rank / least - 1e-9 for rank, share in enumerate(shares, 1))
