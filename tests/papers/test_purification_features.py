"""Features before and after at their smallest scale; and the claims on images made up to refute them."""

import json
import os
from pathlib import Path

import pytest
import torch

from bessemer.errors import UsageError
from bessemer.papers.feature_purification import compared, features
from bessemer.papers.feature_purification.pairs import larger, mean, mostly

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)
NEURONS = 20


@needs_mnist
def test_the_smoke_scale_runs_end_to_end_and_trains_nothing_twice(tmp_path):
    seen = []
    result = features.run("smoke", tmp_path, watch_evaluation=lambda name: lambda stage: seen.append((name, stage)))
    written = json.loads(result.write(tmp_path).read_text())
    assert written["name"] == "purification-features"
    assert set(written["numbers"]) == {"conv2", "ip1"}
    assert set(written["numbers"]["ip1"]) >= {"clean", "l2-0.5", "linf-8", "recognised by the clean network"}
    assert written["numbers"]["ip1"]["neurons"] == 8
    assert len(written["claims"]) == 4
    assert [(stage.attack, stage.done, stage.total) for _, stage in seen] == [
        ("conv2", 0, 2),
        ("ip1", 1, 2),
        ("", 2, 2),
    ]
    for ending in ("", "-regularised"):
        picture = tmp_path / f"purification-features-smoke{ending}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(made) >= 8
    assert features.run("smoke", tmp_path).numbers == result.numbers
    assert {path: path.stat().st_mtime_ns for path in made} == made


def images(waves, noise):
    """Images of a few cosines each, with so much noise."""
    place = torch.arange(32)
    generator = torch.Generator().manual_seed(0)
    wave = torch.stack([torch.cos(torch.pi / 32 * (place + 0.5) * (1 + n % waves)) for n in range(NEURONS)])
    drawn = wave[:, None, :, None].expand(-1, 3, -1, 32) + noise * torch.randn(NEURONS, 3, 32, 32, generator=generator)
    return 0.5 + 0.1 * drawn


def layer(clean_noise=1.0, robust_noise=0.2, own=1.0, unrelated=0.0):
    """What would be seen of a layer: so noisy images, and so large a share of neurons that know their own."""
    every = {"clean": images(4, clean_noise), **{which: images(4, robust_noise) for which in compared.ROBUST}}

    def excited(share):
        known = torch.arange(NEURONS) < round(share * NEURONS)
        return torch.diag(torch.where(known, 1.0, -1.0))

    return features.Seen(
        every,
        every,
        {which: excited(own) for which in compared.ROBUST},
        {which: excited(unrelated) for which in compared.ROBUST},
    )


def held(**seen):
    return [claim.holds for claim in features.claims({"conv": layer(), "conv2": layer(**seen)})]


def test_every_claim_holds_where_it_should():
    assert held() == [True] * 4


@pytest.mark.parametrize(
    ("seen", "fails"),
    [
        ({"robust_noise": 1.0}, [0, 1]),
        ({"robust_noise": 2.0}, [0, 1]),
        ({"own": 0.4}, [2]),
        ({"unrelated": 0.2}, [3]),
    ],
)
def test_each_claim_can_fail(seen, fails):
    assert [place for place, holds in enumerate(held(**seen)) if not holds] == fails


def test_a_layer_of_ten_logits_decides_nothing():
    small = layer(robust_noise=2.0)
    small = features.Seen(*({key: value[:10] for key, value in part.items()} for part in vars(small).values()))
    assert all(claim.holds for claim in features.claims({"conv": layer(), "fc": small}))


def test_a_neuron_is_recognised_by_its_own_image():
    excited = torch.tensor([[3.0, 0, 9], [1, 5, 0], [2, 6, 4]])  # rows are images
    assert str(features.recognised(excited)) == str(larger(torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 2])))


def test_pairs_are_counted_without_ties_and_gaps():
    one, other = torch.tensor([1.0, 2, 3, float("nan")]), torch.tensor([0.0, 2, 5, 1])
    share = larger(one, other)
    assert (share.count, share.total) == (1, 2)
    assert mean(one) == 2
    assert not mostly(larger(one[:1], one[:1]))
    assert mostly(larger(torch.ones(7), torch.zeros(7)))
    assert not mostly(larger(torch.ones(6), torch.zeros(6)))  # 1/64 is above 0.01


def test_captions_say_the_ball():
    assert compared.caption("resnet", "linf-8") == "adversarially trained, Linf 8/255"
    assert compared.caption("lenet", "clean") == "clean"


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'smoke'"):
        features.run("smoky", tmp_path)
