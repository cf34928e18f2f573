"""Three runs and two evaluations that nobody made."""

import numpy as np
import pytest
from made_up import exhibit, judged, run

from bessemer.records import NOT_TRIED


@pytest.fixture(scope="session")
def three_runs():
    return [run("regular"), run("bang"), run("adversarial")]


@pytest.fixture(scope="session")
def cascade():
    """Eight images: 0 is wrong, `first` turns 1, 2 and 3, `second` turns 4 of the other four, 5, 6 and 7 stand."""
    label = np.zeros(8, np.int64)
    attacks = {
        "first": (
            "bounded",
            "",
            {
                "prediction": [1, 1, 2, 3, 0, 0, 0, 0],
                "forwards": [0, 5, 2, 9, 10, 10, 10, 10],
                "backwards": [0, 4, 1, 8, 9, 9, 9, 9],
            },
        ),
        "second": (
            "bounded",
            "",
            {
                "prediction": [1, NOT_TRIED, NOT_TRIED, NOT_TRIED, 7, 0, 0, 0],
                "forwards": [0, 0, 0, 0, 30, 100, 100, 100],
            },
        ),
    }
    specimens = [exhibit("second", place, 0, 0, 0) for place in (5, 6)]
    specimens += [exhibit("second", 4, 0, 0, 7), exhibit("first", 1, 0, 0, 1), exhibit("first", 2, 0, 0, 2)]
    return judged("cascaded", label, [1, 0, 0, 0, 0, 0, 0, 0], attacks, specimens=specimens)


@pytest.fixture(scope="session")
def minimal():
    """Five images: 0 is wrong; the nearest wrong answers lie at 0.1, 0.2 and 0.4, and 4 has none."""
    label = np.zeros(5, np.int64)
    near = {"prediction": [1, 1, 1, 0, 0], "l2": [0, 0.1, 0.3, 0, 0], "forwards": [0, 9, 9, 9, 9]}
    far = {"prediction": [1, 1, 1, 1, 0], "l2": [0, 0.5, 0.2, 0.4, 0], "forwards": [0, 7, 7, 7, 7]}
    attacks = {"near": ("minimal", "L2", near), "far": ("minimal", "L2", far)}
    specimens = [exhibit("near", 4, 0, 0, 0), exhibit("near", 2, 0, 0, 1), exhibit("near", 1, 0, 0, 1)]
    return judged("small", label, [1, 0, 0, 0, 0], attacks, suite="minimal", specimens=specimens)
