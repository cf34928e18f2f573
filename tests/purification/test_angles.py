"""Angles and what is left between two weights, against formulas written out and planted truths."""

import math

import pytest
import torch

from bessemer.purification import angles

DOUBLE = torch.float64


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_theta_is_the_cosine_without_its_sign_neuron_by_neuron():
    a, b = rows(7, 30), rows(7, 30, seed=1)
    for one, other, found in zip(a.tolist(), b.tolist(), angles.theta(a, b).tolist(), strict=True):
        inner = sum(x * y for x, y in zip(one, other, strict=True))
        lengths = math.sqrt(sum(x * x for x in one) * sum(y * y for y in other))
        assert found == pytest.approx(abs(inner) / lengths, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-30, 1e30, -3.0])
def test_lengths_and_signs_change_no_theta_and_no_removed_share(factor):
    a, b = rows(5, 12), rows(5, 12, seed=1)
    for measure in (angles.theta, angles.removed, angles.nearest):
        torch.testing.assert_close(measure(factor * a, b), measure(a, b))
        torch.testing.assert_close(measure(a, factor * b), measure(a, b))


def test_a_planted_mixture_comes_back():
    """w = beta w′ + v with v upright on w′: just what the least-squares beta must find."""
    robust = rows(6, 40)
    v = rows(6, 40, seed=1)
    v -= (v * robust).sum(1, keepdim=True) / robust.square().sum(1, keepdim=True) * robust
    beta = torch.tensor([2.0, 0.5, -1.0, 0.1, 3.0, 1.0], dtype=DOUBLE)
    clean = beta[:, None] * robust + v
    torch.testing.assert_close(angles.scaling(clean, robust), beta)
    torch.testing.assert_close(angles.removed(clean, robust), v.norm(dim=1) / clean.norm(dim=1))
    kept = (beta[:, None] * robust).norm(dim=1) / clean.norm(dim=1)
    torch.testing.assert_close(angles.theta(clean, robust), kept)


def test_no_other_beta_leaves_a_shorter_rest():
    clean, robust = rows(8, 20), rows(8, 20, seed=1)
    beta = angles.scaling(clean, robust)
    shortest = (clean - beta[:, None] * robust).norm(dim=1)
    for other in (beta - 1e-3, beta + 1e-3):
        assert ((clean - other[:, None] * robust).norm(dim=1) > shortest).all()


def test_the_rest_of_nearly_equal_weights_is_not_lost_in_rounding():
    robust, v = rows(3, 50), rows(3, 50, seed=1)
    v -= (v * robust).sum(1, keepdim=True) / robust.square().sum(1, keepdim=True) * robust
    expected = 1e-9 * v.norm(dim=1) / robust.norm(dim=1)
    torch.testing.assert_close(angles.removed(robust + 1e-9 * v, robust), expected, rtol=1e-5, atol=0)


def test_nearest_is_the_largest_over_all_neurons_and_skips_the_dead():
    a, b = rows(4, 9), rows(6, 9, seed=1)
    b[2] = 0
    for place in range(4):
        each = [angles.theta(a[place : place + 1], b[other : other + 1]).item() for other in (0, 1, 3, 4, 5)]
        assert angles.nearest(a, b)[place].item() == pytest.approx(max(each))


def test_a_zero_weight_has_no_direction():
    a = torch.tensor([[0.0, 0.0], [1e-40, 0.0], [1e-30, 0.0]], dtype=DOUBLE)
    assert angles.directed(a).tolist() == [False, False, True]
    assert angles.theta(a, rows(3, 2)).isnan().tolist() == [True, False, False]
