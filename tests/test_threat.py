"""The three balls, against their definitions and scipy's optimiser."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bessemer.errors import ThreatError, UsageError
from bessemer.threat import L1, L2, THREATS, Linf, parse, read_number

ALL = [Linf(0.2), L2(0.7), L1(1.5)]
DUAL = {"Linf": 1, "L2": 2, "L1": math.inf}
ORDER = {"Linf": math.inf, "L2": 2, "L1": 1}


def images(seed=0, count=5, shape=(2, 3, 3)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_size_is_the_norm(threat):
    change = torch.randn(5, 2, 3, 3)
    expected = torch.linalg.vector_norm(change.flatten(1), ord=ORDER[threat.norm], dim=1)
    torch.testing.assert_close(threat.size(change), expected)


@pytest.mark.parametrize("threat", ALL, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_steepest_has_size_one_and_attains_the_dual_norm(threat, scale):
    gradient = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(1)) * scale
    direction = threat.steepest(gradient)
    torch.testing.assert_close(threat.size(direction), torch.ones(5))
    gain = (direction * (gradient / scale)).flatten(1).sum(1)
    expected = torch.linalg.vector_norm((gradient / scale).flatten(1), ord=DUAL[threat.norm], dim=1)
    torch.testing.assert_close(gain, expected)


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_no_gradient_no_direction(threat):
    assert (threat.steepest(torch.zeros(2, 1, 2, 2)) == 0).all()
    assert (threat.step(torch.zeros(2, 1, 2, 2), images(shape=(1, 2, 2), count=2)) == 0).all()


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_projection_leaves_inside_points_where_they_are(threat):
    x = images()
    inside = threat.sample(x, 3, torch.arange(5))
    torch.testing.assert_close(threat.project(inside, x), inside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_projected_points_are_legal(threat):
    x = images()
    threat.require(threat.project(x + 3 * torch.randn_like(x), x), x, slack=1e-6)


@pytest.mark.parametrize("threat", [L1(1.0), L2(1.0)], ids=str)
def test_into_ball_is_the_nearest_point_that_an_optimiser_finds(threat):
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        change = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        found = threat.into_ball(change)[0]
        order = ORDER[threat.norm]
        # positive and negative parts make the L1 constraint smooth
        best = minimize(
            lambda v, c=change[0].numpy(): ((v[:4] - v[4:] - c) ** 2).sum(),
            x0=[0.1] * 8,
            bounds=[(0, None)] * 8,
            constraints={
                "type": "ineq",
                "fun": lambda v: 1.0 - (v.sum() if order == 1 else ((v[:4] - v[4:]) ** 2).sum() ** 0.5),
            },
            options={"ftol": 1e-12, "maxiter": 500},
        )
        expected = torch.tensor(best.x[:4] - best.x[4:])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12), st.floats(0.01, 3))
@settings(max_examples=60, deadline=None)
def test_the_l1_projection_is_inside_and_soft_thresholds(values, eps):
    change = torch.tensor([values], dtype=torch.float64)
    found = L1(eps).into_ball(change)
    assert L1(eps).size(found) <= eps + 1e-9
    shrunk = (change.abs() - found.abs())[found != 0]
    if len(shrunk) > 1:  # every coordinate that is left lost the same
        assert shrunk.max() - shrunk.min() < 1e-9


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_random_starts_belong_to_the_image_and_not_to_the_batch(threat):
    x = images()
    whole = threat.sample(x, 9, torch.arange(5))
    torch.testing.assert_close(threat.sample(x[3:4], 9, torch.tensor([3])), whole[3:4])
    assert not torch.equal(threat.sample(x, 10, torch.arange(5)), whole)
    threat.require(whole, x)


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_random_starts_fill_the_ball(threat):
    wide = type(threat)(0.3, box=None)
    sizes = wide.size(wide.sample(torch.zeros(2000, 1, 2, 2), 0, torch.arange(2000)))
    assert sizes.max() > 0.28
    assert sizes.min() < 0.12
    assert sizes.max() <= 0.3 + 1e-6


def test_the_l1_step_moves_the_steepest_hundredth_that_is_free():
    x = torch.full((1, 1, 20, 20), 0.5)
    gradient = torch.arange(400.0).view(1, 1, 20, 20) + 1
    x[0, 0, 19, 18:] = 1.0  # the two steepest are at the end of the box already
    step = L1(1.0).step(gradient, x)
    assert step.flatten().nonzero()[:, 0].tolist() == [394, 395, 396, 397]
    torch.testing.assert_close(step.sum(), torch.tensor(1.0))


def test_require_names_what_strayed():
    x = images()
    with pytest.raises(ThreatError, match=r"moved by Linf 0\.2\d*, more than the radius 0\.1"):
        Linf(0.1).require((x + 0.2).clamp(0, 2), x)
    with pytest.raises(ThreatError, match=r"left \[0\.0, 1\.0\]"):
        Linf(1.0).require(x + 0.9, x)
    with pytest.raises(ThreatError):
        L2(1.0).require(x * float("nan"), x)


def test_radii_that_cannot_be_meant_are_refused():
    with pytest.raises(ThreatError, match="8/255"):
        Linf(8)
    with pytest.raises(ThreatError):
        L2(-1)
    with pytest.raises(ThreatError):
        L1(float("nan"))
    assert L1(12).eps == 12


@pytest.mark.parametrize("text", ["Linf:8/255", "L2:0.5", "L1:12", "Linf:0.1", "Linf:0.3", "L2:1/3", "Linf:4/255"])
def test_text_is_read_and_written(text):
    threat = parse(text)
    assert parse(str(threat)) == threat
    assert eval(repr(threat), dict(THREATS)) == threat


def test_wrong_text_is_answered_with_what_is_right():
    with pytest.raises(UsageError, match="did you mean 'Linf'"):
        parse("linf:8/255")
    with pytest.raises(UsageError, match="no radius"):
        parse("Linf")
    with pytest.raises(UsageError, match="not a number"):
        parse("Linf:__import__('os')")
    with pytest.raises(UsageError):
        read_number("1/0")


def test_without_a_box_vectors_may_be_any():
    x = torch.full((1, 3), 5.0)
    assert torch.equal(Linf(2.0, box=None).project(x + 9, x), x + 2)
