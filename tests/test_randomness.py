"""Counter-based numbers: their distribution, and that each belongs to (seed, stream, index, coordinate) alone."""

from __future__ import annotations

import math

import pytest
import torch

from bessemer import randomness

MANY = torch.arange(2000)
DRAWS = [
    pytest.param(lambda index, seed=1, stream=0: randomness.uniform((3, 4), seed, index, stream=stream), id="uniform"),
    pytest.param(lambda index, seed=1, stream=0: randomness.normal((3, 4), seed, index, stream=stream), id="normal"),
    pytest.param(lambda index, seed=1, stream=0: randomness.integers(1 << 30, seed, index, stream), id="integers"),
]


def splitmix(word: int) -> int:
    """SplitMix64's finaliser in Python's own integers."""
    mask = (1 << 64) - 1
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


def test_the_mixing_is_splitmix64s():
    words = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF]
    signed = torch.tensor([word - (1 << 64) if word >> 63 else word for word in words])
    assert [word % (1 << 64) for word in randomness._mix(signed).tolist()] == [splitmix(word) for word in words]


def test_splitmix64_gives_its_published_first_numbers():
    # the first outputs for the seed 1234567, as every implementation quotes them
    golden = 0x9E3779B97F4A7C15
    state = [(1234567 + golden * step) % (1 << 64) for step in (1, 2, 3)]
    assert [splitmix(word) for word in state] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_have_the_moments_of_the_uniform_distribution():
    numbers = randomness.uniform((500,), 7, MANY).double().flatten()
    n = len(numbers)
    assert abs(numbers.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / n)
    assert abs(numbers.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    counts = torch.histc(numbers, 100, 0, 1)
    chi_squared = ((counts - n / 100).square() / (n / 100)).sum()
    assert abs(chi_squared - 99) < 5 * math.sqrt(2 * 99)


@pytest.mark.parametrize("word", [0, -1], ids=["all bits 0", "all bits 1"])
def test_uniform_numbers_are_never_0_and_never_1(word, monkeypatch):
    """A Laplace or normal draw takes their logarithm."""
    monkeypatch.setattr(randomness, "_words", lambda seed, index, count, stream: torch.full((len(index), count), word))
    number = randomness.uniform((1,), 0, torch.arange(1)).item()
    assert 0 < number < 1


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    numbers = randomness.normal((500,), 7, MANY).double().flatten()
    n = len(numbers)
    assert numbers.isfinite().all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(numbers.pow(power).mean() - moment) < 5 * math.sqrt(variance / n)
    within = [(numbers.abs() < width).double().mean().item() for width in (1, 2, 3)]
    assert within == pytest.approx([math.erf(width / math.sqrt(2)) for width in (1, 2, 3)], abs=0.003)


def test_integers_are_spread_evenly_over_their_range():
    counts = torch.bincount(randomness.integers(9, 3, torch.arange(90_000)), minlength=9)
    assert len(counts) == 9
    assert ((counts - 10_000).abs() < 5 * math.sqrt(10_000 * 8 / 9)).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_splitting_or_reordering_a_batch_changes_no_draw(draw):
    index = torch.tensor([5, 0, 99_999, 3, 3])
    whole = draw(index)
    assert torch.equal(whole, torch.cat([draw(index[:2]), draw(index[2:])]))
    assert torch.equal(whole.flip(0), draw(index.flip(0)))
    assert torch.equal(whole[3], whole[4])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("draw", DRAWS)
def test_streams_seeds_and_neighbouring_images_are_independent(draw):
    def standard(numbers):
        numbers = numbers.double().flatten()
        return (numbers - numbers.mean()) / numbers.std()

    plain = draw(MANY)
    for other in (draw(MANY, stream=1), draw(MANY, stream=2), draw(MANY, seed=2), draw(MANY + 1)):
        assert not torch.equal(plain, other)
        assert abs((standard(plain) * standard(other)).mean()) < 5 / math.sqrt(plain.numel())


def test_pixels_of_one_image_are_independent():
    numbers = randomness.normal((40,), 0, MANY).double()
    correlation = torch.corrcoef(numbers.T) - torch.eye(40)
    assert correlation.abs().max() < 6 / math.sqrt(len(MANY))


def test_subseeds_are_distinct_and_fit_a_torch_seed():
    seeds = [
        randomness.subseed(seed, *labels) for seed in range(20) for labels in [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
    ]
    seeds += [randomness.subseed(0, 1, step) for step in range(2, 10_000)]
    assert len(set(seeds) - {randomness.subseed(seed) for seed in range(20)}) == len(seeds) - 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_a_draw_comes_in_the_type_that_was_asked_for():
    assert randomness.uniform((2,), 0, MANY, torch.float64).dtype == torch.float64
    assert randomness.normal((2,), 0, MANY, torch.float64).dtype == torch.float64
    assert randomness.uniform((2, 3), 0, torch.arange(0)).shape == (0, 2, 3)
