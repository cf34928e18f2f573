"""Means over seeds, and their intervals."""

import math
import statistics

import pytest

from bessemer.papers.seeds import spread


def test_the_interval_is_student_s():
    mean, half = spread([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302653 * statistics.stdev([1, 2, 4]) / math.sqrt(3), rel=1e-6)
    assert spread([3.0]) == (3.0, math.inf)
    assert spread([1.0, 1.0, 1.0]) == (1.0, math.inf)
