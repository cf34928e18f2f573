"""The whole experiment, at a size where it is done in seconds; its figures mean nothing at that size."""

from dataclasses import replace

import pytest
import torch

from bessemer.errors import UsageError
from bessemer.purification.sparse_coding.certificate import certify
from bessemer.purification.sparse_coding.data import SparseCoding
from bessemer.purification.sparse_coding.laboratory import MEASUREMENTS, Laboratory, crossing
from bessemer.purification.sparse_coding.standing import after
from bessemer.threat import L2

QUICK = tuple(name for name in MEASUREMENTS if name not in ("standard", "comparisons"))
SMALL = Laboratory(
    SparseCoding(24, 3, margin=0.7),
    L2(0.2, box=None),
    clean_iterations=120,
    robust_iterations=60,
    judged=60,
    certified=20,
    measured=QUICK,
)


def silent(part):
    return lambda done, total: None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def found(folder):
    return SMALL.run(folder, silent)


def test_every_measurement_is_there_and_consistent(found):
    assert set(found) == set(QUICK)
    for name in ("clean", "robust"):
        accuracy = found["accuracy"][name]
        assert accuracy["worst"] <= min(accuracy["dense direction"], accuracy["FGM"], accuracy["PGD-50"])
        assert accuracy["PGD-50"] <= accuracy["clean"]
        assert found["certificate"][name]["1.0"] <= found["certificate"][name]["0.75"]
        curve = found["radii"][name]["standing"]
        assert curve == sorted(curve, reverse=True)
    ranks = found["ranks"]
    assert ranks["ranks"] == [0, 1, 2, 4, 8, 16, 24]
    assert ranks["explained"][0] == 0
    assert ranks["explained"][-1] == pytest.approx(1)
    assert ranks["explained"] == sorted(ranks["explained"])
    lines = found["training"]
    assert [lines["clean"][-1]["iteration"], lines["robust"][-1]["iteration"]] == [120, 60]
    assert lines["robust"][0]["PGD-10"] == lines["clean"][-1]["PGD-10"]  # where one ends the other begins


def test_what_is_certified_stands(folder, found):
    network = SMALL._trained(folder, silent).robust  # read, not trained again
    inputs, labels = SMALL.samples.inputs[:20], SMALL.samples.labels[:20]
    certified = certify(network.weight.detach(), network.biases, inputs, labels, SMALL.threat.eps).certified
    assert certified.double().mean() == found["certificate"]["robust"]["1.0"] > 0
    for attack in SMALL.attacks.values():
        assert after(attack, network, inputs, labels)[certified].all()


def test_what_was_measured_is_read_and_what_is_missing_is_made_again(folder, found):
    began = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    (folder / "ranks.json").unlink()
    again = SMALL.run(folder, silent)
    assert {key: value for key, value in again["ranks"].items() if key != "seconds"} == {
        key: value for key, value in found["ranks"].items() if key != "seconds"
    }
    changed = {path.name for path in folder.glob("*.json") if path.stat().st_mtime_ns != began[path.name]}
    assert changed == {"ranks.json"}


def test_another_experiments_folder_is_refused(folder, found):
    with pytest.raises(UsageError, match="another experiment"):
        replace(SMALL, seed=1).run(folder, silent)


def test_a_radius_beyond_the_signals_own_is_refused_with_the_number():
    reach = SMALL.source.reach
    with pytest.raises(UsageError, match=f"even the true signal cannot be robust: from {reach:.3g} on"):
        Laboratory(SMALL.source, L2(reach * 1.01, box=None))
    with pytest.raises(UsageError, match="box=None"):
        Laboratory(SMALL.source, L2(0.1))


def test_curves_are_read_between_their_points():
    assert crossing([1.0, 2.0], [0.8, 0.2], 0.5, 1.0) == pytest.approx(1.5)
    assert crossing([1.0], [0.9], 0.95, 1.0) == pytest.approx(0.5)
    assert crossing([1.0], [0.9], 0.95, 0.98) == pytest.approx(0.375)
    assert crossing([1.0], [0.9], 0.95, 0.94) == 0.0
    assert crossing([1.0, 2.0], [0.9, 0.8], 0.5, 1.0) is None


def test_the_initial_weights_are_the_same_with_and_without_a_resume(folder, found):
    torch.manual_seed(99)  # nothing hangs on what was drawn before
    (folder / "features.json").unlink()
    again = SMALL.run(folder, silent)["features"]
    assert again["decomposition"]["before"] == found["features"]["decomposition"]["before"]
