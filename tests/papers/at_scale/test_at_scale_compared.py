"""Intervals of differences: against the published formula, and against truths that are known."""

import math

import numpy as np
import pytest

from bessemer.papers.at_scale.compared import claim, difference, share


def verdicts(both, one, other, neither):
    """Two networks on as many images: both right, one alone, the other alone, neither."""
    first = np.repeat([True, True, False, False], [both, one, other, neither])
    second = np.repeat([True, False, True, False], [both, one, other, neither])
    return first, second


@pytest.mark.parametrize("counts", [(100, 40, 20, 340), (0, 3, 0, 497), (250, 0, 0, 250), (10, 200, 30, 760)])
def test_one_seed_gives_the_adjusted_interval_of_bonett_and_price(counts):
    first, second = verdicts(*counts)
    found = difference([first], [second])
    n, (_, one, other, _) = sum(counts), counts
    p, q = (one + 1) / (n + 2), (other + 1) / (n + 2)
    half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    assert found.value == (one - other) / n
    assert found.low == pytest.approx(min(found.value, p - q - half), abs=2e-4)
    assert found.high == pytest.approx(max(found.value, p - q + half), abs=2e-4)


def test_images_on_which_both_agree_do_not_widen_it_but_seeds_do():
    random = np.random.default_rng(0)
    base = random.random(500) < 0.4
    better = base | (random.random(500) < 0.05)
    alike = difference([better] * 3, [base] * 3)
    unequal = [better, base | (random.random(500) < 0.12), base]
    spread = difference(unequal, [base] * 3)
    assert alike.verdict() == "above"
    assert spread.high - spread.low > 2 * (alike.high - alike.low)
    assert (alike.seeds, alike.images) == ((3, 3), 500)


@pytest.mark.parametrize("seeds", [(1, 1), (3, 3), (3, 1), (1, 4)])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(seeds):
    """Networks that differ by 6 points on average, by 3 more or less from seed to seed; images of all difficulties."""
    random = np.random.default_rng(sum(seeds))
    inside, times = 0, 400
    for _ in range(times):
        difficulty = random.random(300)
        spread = 0.03 if max(seeds) > 1 else 0.0
        own, rest = (
            gain + spread / 2**0.5 * random.standard_normal(count) for gain, count in zip((0.06, 0), seeds, strict=True)
        )
        columns = [
            [random.random(300) < (0.3 + 0.4 * difficulty + more).clip(0, 1) for more in gains] for gains in (own, rest)
        ]
        found = difference(*columns)
        inside += found.low <= 0.06 <= found.high
    assert inside >= 0.93 * times


def test_a_share_stays_a_share_and_knows_what_it_does_not_know():
    none = share([np.zeros(500, bool)])
    assert (none.value, none.low) == (0, 0)
    assert 0.005 < none.high < 0.02
    half = share([np.arange(500) < 250])
    assert half.low == pytest.approx(0.456, abs=0.002)  # Agresti and Coull: 252 of 504, ± 1.96 · sqrt(p (1 - p) / 504)
    assert half.level() == "50.0 [45.6, 54.4]"


def test_a_claim_says_which_of_three_it_is():
    first, second = verdicts(100, 60, 10, 330)
    assert claim("c", difference([first], [second])).holds
    assert not (reverse := claim("c", difference([second], [first]))).holds
    assert ", below 0 (500 images, one seed)" in reverse.value
    assert reverse.value.startswith("-10.0 points [-13")
    unclear = claim("c", difference([first], [first]), "p")
    assert (unclear.holds, unclear.published) == (False, "p")
    assert "cannot be told from 0" in unclear.value
    assert claim("as good as", difference([first] * 2, [first] * 2), beyond=-0.03).holds
    assert "above -3 (500 images, 2 seeds)" in difference([first] * 2, [first] * 2).told(-0.03)
