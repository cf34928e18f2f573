"""What a sweep varies: values in decimals as they are written, and refusals before anything starts."""

import itertools
from decimal import Decimal

import pytest

from bessemer.errors import UsageError
from bessemer.sweeps.space import Between, Listed, grid, listed, ranges, searched
from bessemer.training import Recipe

BANG = "bang-digits"


@pytest.mark.parametrize(
    ("asked", "first", "last", "count"),
    [
        ("1.0:1.6:0.05", "1.00", "1.60", 13),
        ("0.78:0.84:0.005", "0.780", "0.840", 13),
        ("0:4:1", "0", "4", 5),
        ("0:1:0.3333333333", "0.0000000000", "0.9999999999", 4),
        ("0:1:0.4", "0.0", "0.8", 3),
        ("1:0:-0.25", "1.00", "0.00", 5),
        ("1e-3:3e-3:1e-3", "0.001", "0.003", 3),
        ("2:2:1", "2", "2", 1),
    ],
)
def test_a_range_includes_its_end_within_rounding(asked, first, last, count):
    texts = listed(f"key={asked}").texts
    assert (texts[0], texts[-1], len(texts)) == (first, last, count)
    start, _, step = map(Decimal, asked.split(":"))
    assert [Decimal(text) for text in texts] == [start + place * step for place in range(count)]


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ("0,1,2", ("0", "1", "2")),
        ("1.0, 1.35,1.6", ("1.0", "1.35", "1.6")),
        ("inv,fixed", ("inv", "fixed")),
        ("Linf:8/255,L2:0.5", ("Linf:8/255", "L2:0.5")),
        ("[10, 20],[30]", ("[10, 20]", "[30]")),
        ("true,false", ("true", "false")),
        ('"a, b",c', ('"a', 'b"', "c")),
        ('"a, b","c"', ('"a, b"', '"c"')),
        ("1.5", ("1.5",)),
    ],
)
def test_a_list_is_of_toml_values_or_of_texts(asked, texts):
    assert listed(f"key={asked}").texts == texts


def test_a_grid_is_every_combination_in_order_with_the_values_of_the_recipe():
    axes = [listed("method.beta=1:1.6:0.3"), listed("method.epsilon=0.78,0.84"), listed("seed=0,1")]
    points = grid(BANG, [], axes)
    wanted = list(itertools.product([1.0, 1.3, 1.6], [0.78, 0.84], [0, 1]))
    assert [tuple(point.values.values()) for point in points] == wanted
    for point in points:
        changes = [f"{key}={text}" for key, text in point.texts.items()]
        assert Recipe.named(BANG, changes).method.beta == point.values["method.beta"]


def test_equal_points_are_one_however_they_are_written():
    (point,) = grid(BANG, [], [listed("method.beta=1,1.0,1.00")])
    assert point.values == {"method.beta": 1.0}
    assert point.identity == grid(BANG, [], [listed("method.beta=1:1:1")])[0].identity


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("method.beta=0:2", Between("method.beta", "0:2", 0.0, 2.0)),
        ("training.batch_size=16:64", Between("training.batch_size", "16:64", 16.0, 64.0, whole=True)),
        ("training.batch_size=16:64:16", Between("training.batch_size", "16:64:16", 16.0, 64.0, step=16.0, whole=True)),
        ("method.beta=0.5:1.6:0.25", Between("method.beta", "0.5:1.6:0.25", 0.5, 1.5, step=0.25)),
        ("optimizer.lr=1e-4:1e-1:log", Between("optimizer.lr", "1e-4:1e-1:log", 1e-4, 1e-1, logarithmic=True)),
        ("schedule.name=inv,fixed", Listed("schedule.name", "inv,fixed", ("inv", "fixed"))),
    ],
)
def test_a_search_takes_ranges_and_knows_whole_numbers_from_the_recipe(text, made):
    assert ranges(BANG, [], [searched(text)]) == [made]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method.beta", "--grid takes KEY=VALUES"),
        ("method.beta=", "--grid takes KEY=VALUES"),
        ("=1,2", "--grid takes KEY=VALUES"),
        ("method.beta=1:2", "a range needs a step, such as method.beta=1:2:0.1"),
        ("method.beta=1:2:0", "steps of 0 do not lead from 1 to 2"),
        ("method.beta=1:2:-1", "steps of -1 do not lead from 1 to 2"),
        ("method.beta=1:2:1e-9", "1,000,000,001 values; choose a longer step"),
        ("method.beta=1,,inv", "a value between the commas is missing"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        listed(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method.beta=2:1", "2 is not below 1"),
        ("method.beta=0:1:log", "begins above 0, not at 0"),
        ("method.beta=1:2:3", "steps of 3 do not fit between 1 and 2"),
        ("method.beta=1:2:3:4", "a range is LOW:HIGH"),
        ("method.beta=1:2:0.1:log", "a range is LOW:HIGH"),
        ("method.beta=1", "one value leaves nothing to search"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        searched(text)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["method.bta=1,2"], "'bta' is not known; did you mean 'beta'"),
        (["method.beta=1:-1:-1"], "BANG's beta should be a number from 0 upwards, found -1"),
        (["method.beta=1,2", "method.beta=3"], "method.beta is varied twice"),
        (["seed=1,2"], "seed is both set and varied"),
        (["method.beta=0:10:0.01", "method.epsilon=0:0.9:0.01"], "points; choose longer steps or fewer settings"),
    ],
)
def test_the_recipe_is_asked_before_anything_starts(axes, said):
    with pytest.raises(UsageError, match=said):
        grid(BANG, ["seed=3"], [listed(axis) for axis in axes])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method.beta=-1:1", "found -1"),
        ("schedule.name=inv,sometimes", "'sometimes' is not known"),
        ("training.iterations=0:10", "at least 1, found 0"),
        ("model.name=1:2", "model"),
    ],
)
def test_both_ends_of_a_range_and_every_text_are_checked(text, said):
    with pytest.raises(UsageError, match=said):
        ranges(BANG, [], [searched(text)])
