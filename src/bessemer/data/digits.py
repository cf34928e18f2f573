"""scikit-learn's digits: 1,797 real handwritten digits, 8×8, embedded, no download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test part). The
writers come one after the other, so the splits are a fixed shuffle: 1,197 to train, 200 to validate, 400 to test.
Levels 0 … 16 become grey levels 0 … 255.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bessemer.data.about import About
from bessemer.data.dataset import Dataset, Split, from_arrays

SIZES = {"train": 1197, "validation": 200, "test": 400}


def load(root: Path | None = None) -> Dataset:
    """The digits; `root` is not looked at."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  (half a second that other data sets need not pay)

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    ends = np.cumsum(list(SIZES.values()))
    places = np.split(order, ends[:-1])
    splits: dict[str, Split] = {
        name: from_arrays("digits", images[place], digits.target[place])
        for name, place in zip(SIZES, places, strict=True)
    }
    return Dataset("digits", tuple("0123456789"), **splits)


ABOUT = About(
    name="digits",
    what="handwritten digits, 8×8 grey, built in",
    training=SIZES["train"] + SIZES["validation"],
    test=SIZES["test"],
    per_class=(178, 182, 177, 183, 181, 182, 181, 179, 174, 180),
)
