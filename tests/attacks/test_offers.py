"""The points that `WorstSeen` and `NearestSeen` keep, against offers made one at a time."""

import pytest
import torch

from bessemer.attacks import Goal, NearestSeen, Oracle, WorstSeen
from bessemer.threat import L2


@pytest.fixture
def offers():
    """Ten rounds of 30 points of 6 images each, a third of which reach the goal; some values are no number."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(6, (10, 30), generator=generator)
    points = torch.rand(10, 30, 4, generator=generator)
    logits = torch.randn(10, 30, 3, generator=generator) + torch.tensor([1.0, 0.0, 0.0])
    values = torch.randn(10, 30, generator=generator)
    values[:, ::7] = torch.nan
    return list(zip(rows, points, logits, values, strict=True))


def oracle(images):
    return Oracle(lambda x: x, images, Goal(torch.zeros(len(images)).long()))


@pytest.mark.parametrize("until_success", [False, True])
def test_several_points_of_an_image_are_taken_as_if_they_came_one_by_one(offers, until_success):
    images = torch.zeros(6, 4)
    together, alone = (WorstSeen(oracle(images), images, until_success) for _ in range(2))
    for rows, points, logits, values in offers:
        reached = together.offer(points, logits, values, rows)
        one_by_one = [
            alone.offer(points[i : i + 1], logits[i : i + 1], values[i : i + 1], rows[i : i + 1]) for i in range(30)
        ]
        assert torch.equal(reached, torch.cat(one_by_one))
        assert 0 < reached.sum() < 30
        assert torch.equal(together.images, alone.images)
        if until_success:
            assert torch.equal(together.is_open(torch.arange(6)).nonzero()[:, 0], alone.open)


def test_of_several_points_of_an_image_the_nearest_is_kept(offers):
    images = torch.zeros(6, 4)
    together, alone = (NearestSeen(oracle(images), images, L2(0.0).size) for _ in range(2))
    for rows, points, logits, _ in offers:
        reached = together.offer(points, logits, rows)
        for i in range(30):
            alone.offer(points[i : i + 1], logits[i : i + 1], rows[i : i + 1])
        assert torch.equal(together.images, alone.images)
        assert torch.equal(together.distance, alone.distance)
        assert (together.distance[rows[reached]] <= L2(0.0).size(points[reached])).all()
