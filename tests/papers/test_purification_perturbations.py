"""Perturbations at their smallest scale; and the claims on perturbations made up to refute them."""

import json
import os
from pathlib import Path

import pytest
import torch

from bessemer.errors import UsageError
from bessemer.papers.feature_purification import perturbations
from bessemer.purification.perturbations import edges, learned_basis, measured

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)
IMAGES = 24


@needs_mnist
def test_the_smoke_scale_runs_end_to_end(tmp_path):
    result = perturbations.run("smoke", tmp_path)
    written = json.loads(result.write(tmp_path).read_text())
    assert written["name"] == "purification-perturbations"
    numbers = written["numbers"]["lenet"]
    assert set(numbers) == {"images", "clean", "clean-other", "l2-0.5", "linf-8", "random noise", "cosine"}
    assert numbers["random noise"]["high frequencies"] == pytest.approx(0.75, abs=0.02)
    assert numbers["random noise"]["Hoyer sparsity, learned"] == pytest.approx(0.2, abs=0.03)
    assert numbers["cosine"]["clean, random noise"] == pytest.approx(0, abs=0.03)
    assert len(written["claims"]) == 6  # grey images have no colour
    assert (tmp_path / "purification-perturbations-smoke-lenet.png").read_bytes().startswith(b"\x89PNG")


def world(robust_noise=0.1, on_edges=1.0, colour=0.0, common=0.3, sparse=True):
    """Clean perturbations of noise; robust ones drawn along the edges, with noise and part of the clean ones."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(IMAGES, 3, 4, 4, generator=generator), 16, mode="bilinear")
    clean, other, noise, grain = torch.randn(4, IMAGES, 3, 16, 16, generator=generator)
    steep = edges(images)[:, None].expand(-1, 3, -1, -1)
    drawn = on_edges * (steep / steep.amax((1, 2, 3), keepdim=True)) ** (6 if sparse else 0)
    tint = colour * torch.tensor([2.0, -1, -1]).view(1, 3, 1, 1)
    robust = drawn * (1 + tint) + robust_noise * grain.mean(1, keepdim=True) + common * 0.1 * clean
    every = {"clean": clean, "clean-other": other, "random noise": noise, "l2-0.5": robust, "linf-8": robust}
    basis = learned_basis(images, patch=8, rounds=5)
    return perturbations.Seen(images, every, {which: measured(these, images, basis) for which, these in every.items()})


def failing(**changed):
    claims = perturbations.claims({"resnet": world(), "alexnet": world(**changed)})
    assert len(claims) == 7
    return [claim.text.split(":")[0] for claim in claims if not claim.holds]


def test_every_claim_holds_where_it_should():
    assert failing() == []


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({"robust_noise": 5.0}, "Noise"),
        ({"colour": 3.0}, "Coloured"),
        ({"sparse": False, "robust_noise": 0.02}, "Dense"),
        ({"on_edges": 0.0}, "Object-shaped"),
        ({"common": 0.0}, "What is attacked before and after has something in common"),
    ],
)
def test_each_claim_can_fail(changed, fails):
    assert fails in failing(**changed)


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="scale"):
        perturbations.run("huge", tmp_path)
