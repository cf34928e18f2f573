"""BANG's Figures 3 and 5 at their smallest scale; the share of distortions against the normal distribution."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bessemer.errors import UsageError
from bessemer.papers.bang import noise

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)


@needs_mnist
def test_the_smoke_scale_runs_end_to_end_and_distorts_nothing_twice(tmp_path, monkeypatch):
    result = noise.run("lenet", "smoke", tmp_path)
    written = json.loads(result.write(tmp_path).read_text())
    assert written["name"] == "bang-figure3"
    numbers = written["numbers"]
    assert set(numbers["turned"]) == {"R0", "B1"}
    assert np.shape(numbers["turned"]["B1"]) == (len(numbers["levels"]), len(numbers["iterations"])) == (10, 15)
    assert numbers["iterations"][-1] == 150
    assert numbers["right_throughout"] <= numbers["images"] == 10
    assert (tmp_path / "bang-figure3-smoke.png").stat().st_size > 10_000
    monkeypatch.setattr(noise, "turned", lambda *arguments: pytest.fail("what was measured is measured again"))
    assert noise.run("lenet", "smoke", tmp_path).numbers == result.numbers


class Threshold(nn.Module):
    """Class 0 above 0.5, class 1 below, for images of a single pixel."""

    def forward(self, images):
        value = images.flatten(1)
        return torch.cat([value - 0.5, 0.5 - value], 1)


def test_the_share_turned_is_that_of_the_normal_distribution():
    images = torch.full((40, 1, 1, 1), 0.6)
    levels = [10, 25, 51]
    found = noise.turned(Threshold(), images, torch.arange(40), levels, distortions=200)
    for level, share in zip(levels, found, strict=True):
        expected = 50 * math.erfc(0.1 / (level / 255) / math.sqrt(2))
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (100 - expected) / 8000) + 0.05)


def test_the_answer_without_noise_is_what_distortions_are_compared_with():
    everything_wrong = torch.full((3, 1, 1, 1), 0.9)  # class 0, whatever the labels say
    assert noise.turned(Threshold(), everything_wrong, torch.arange(3), [1], distortions=5) == [0]


def test_steady_images_come_first():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    steady = torch.tensor([False, True, True, False, False, True])
    assert noise.of_each_class(labels, steady, 2).tolist() == [1, 2, 5, 3]


def test_the_claims_can_fail():
    strong, weak = np.full((10, 20), 3.0), np.full((10, 20), 20.0)
    assert [claim.holds for claim in noise.claims("lenet", {"R0": weak, "B1": strong})] == [True] * 3
    assert not any(claim.holds for claim in noise.claims("lenet", {"R0": strong, "B1": weak}))
    assert [claim.holds for claim in noise.claims("lenet", {"R0": strong + 1, "B1": strong})] == [True, False, True]
    alike = noise.claims("lenet", {"R0": strong, "B1": strong})
    assert not any(claim.holds for claim in alike)
    assert alike[-1].value.startswith("at 0 %, alike at 100 %")


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'full'"):
        noise.run("lenet", "ful", tmp_path)
