"""The angles at their smallest scale; and claims on records made up to keep and to refute them."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bessemer.errors import UsageError
from bessemer.papers.feature_purification import angles
from bessemer.records.purification import NEURON_COLUMNS, PURIFICATIONS, Layer, Purification

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)


@needs_mnist
def test_the_smoke_scale_runs_end_to_end(tmp_path):
    result = angles.run("smoke", tmp_path)
    written = json.loads(result.write(tmp_path).read_text())
    assert written["name"] == "purification-angles"
    numbers = written["numbers"]["lenet"]
    assert set(numbers) == {*angles.ROBUST, "clean-other", "removed, cosine with linf-8"}
    assert [numbers[which]["relation"] for which in ("linf-8", "bang", "clean-other")] == [
        "continued", "continued", "unrelated",
    ]  # fmt: skip
    assert numbers["clean-other"]["layers"]["all layers"]["clean_robust"] < 0.2
    assert len(written["claims"]) == 7
    assert (tmp_path / "purification-angles-smoke-lenet.png").stat().st_size > 10_000
    assert len(list((tmp_path / "lenet-linf-8" / PURIFICATIONS).glob("*.json"))) == 1


def record(initial, kept, neurons=50):
    columns = {column: np.full(neurons, initial) for column in NEURON_COLUMNS}
    columns |= {"clean_robust": np.full(neurons, kept), "removed": np.full(neurons, math.sqrt(1 - kept**2))}
    columns |= {"beta": np.ones(neurons)}
    layer = Layer("conv", [neurons, 9], 9, columns, [], [1, 2, 4, 8], [0.5] * 4, [0.5] * 4, [0.1] * 4, 1.0)
    return Purification("clean", "robust", "start", "", "continued", [layer])


def networks(strong, weak, bang, null):
    """The same comparison for both norms."""
    return {"linf-8": strong, "l2-0.5": strong, "linf-4": weak, "l2-0.25": weak, "bang": bang, "clean-other": null}


def test_the_claims_hold_where_there_is_purification_and_fail_where_there_is_none():
    pure, less, null, nothing = record(0.05, 0.9), record(0.05, 0.95), record(0.05, 0.05), record(0.9, 0.3)
    shared = {"l2-0.5": np.full(5, 0.6), "bang": np.full(5, 0.5)}
    assert all(claim.holds for claim in angles.claims("net", networks(pure, less, pure, null), shared))
    assert not any(claim.holds for claim in angles.claims("net", networks(nothing, nothing, nothing, pure), shared))
    elsewhere = {"l2-0.5": np.full(5, 0.6), "bang": np.full(5, 0.01)}
    held = [claim.holds for claim in angles.claims("net", networks(pure, less, pure, null), elsewhere)]
    assert held == [True] * 6 + [False]


def test_what_two_networks_removed_is_compared_neuron_by_neuron():
    """Planted: the first neuron loses the same mixture in both, the second opposite ones, the third unrelated ones."""
    pure = torch.eye(6)[:3]
    mixtures = torch.eye(6)[3:]
    clean, one, other = (nn.Linear(6, 3) for _ in range(3))
    with torch.no_grad():
        clean.weight.copy_(pure + 0.1 * mixtures[0])
        one.weight.copy_(pure)
        other.weight.copy_(pure)
        one.weight[1] += 0.2 * mixtures[0]
        other.weight[2] += 0.1 * (mixtures[0] + mixtures[1])
    first, second, third = angles.common(clean, one, other)
    assert first == pytest.approx(1)
    assert second == pytest.approx(-1, abs=0.1)
    assert abs(third) < 0.15


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'full'"):
        angles.run("ful", tmp_path)
