"""Sparse reconstruction at its smallest scale; and the claims on errors made up to refute them."""

import json
import os
from pathlib import Path

import pytest
import torch

from bessemer.errors import UsageError
from bessemer.papers.feature_purification import reconstruction
from bessemer.purification.reconstruction import LEVELS, Reconstruction

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)
IMAGES = 24


@needs_mnist
def test_the_smoke_scale_runs_end_to_end(tmp_path):
    result = reconstruction.run("smoke", tmp_path)
    written = json.loads(result.write(tmp_path).read_text())
    assert written["name"] == "purification-reconstruction"
    assert set(written["numbers"]) == {
        "images", "numbers in an image", "clean", "l2-0.5", "linf-8", "random filters"
    }  # fmt: skip
    assert written["numbers"]["clean"]["filters"] == [20, 1, 5, 5]
    levels = written["numbers"]["clean"]["levels"]
    assert [level["asked"] for level in levels] == [4.05, 2.89, 1.9, 1.1, 0.44]
    errors = [level["error"] for level in levels]
    assert errors == sorted(errors)
    assert len(written["claims"]) == 5
    for ending in ("", "-filters"):
        picture = tmp_path / f"purification-reconstruction-smoke{ending}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def levels(error, wrong=0, share=1.0):
    """What would be found with some filters: an error that doubles with every level, and is 1 for some images."""
    errors = [torch.full((IMAGES,), error * 2**place) for place in range(len(LEVELS))]
    for one in errors:
        one[:wrong] = 1
    nothing = torch.zeros(0)
    return [
        Reconstruction(asked, asked * share, 1.0, nothing, each, 0.0)
        for asked, each in zip(LEVELS, errors, strict=True)
    ]


def held(**changed):
    found = {"clean": levels(0.02), "l2-0.5": levels(0.015), "linf-8": levels(0.015), "random filters": levels(0.04)}
    return [claim.holds for claim in reconstruction.claims({**found, **changed})]


def test_every_claim_holds_where_it_should():
    assert held() == [True] * 5


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({"clean": levels(0.02, share=0.97)}, [0]),
        ({"clean": levels(0.02, wrong=4)}, [1]),
        ({"random filters": levels(0.019)}, [2]),
        ({"l2-0.5": levels(0.021)}, [3]),
        ({"linf-8": levels(0.015, wrong=8)}, [4]),
    ],
)
def test_each_claim_can_fail(changed, fails):
    assert [place for place, holds in enumerate(held(**changed)) if not holds] == fails


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="scale"):
        reconstruction.run("huge", tmp_path)
