import json
from dataclasses import replace

import pytest
import torch

from bessemer.attacks import FGSM
from bessemer.data import Batch
from bessemer.errors import DivergedError
from bessemer.purification.sparse_coding.data import SparseCoding, Stream
from bessemer.purification.sparse_coding.network import SymmetricReLU
from bessemer.purification.sparse_coding.training import Phase, Ramped, Regularised, Settled, Thresholds
from bessemer.threat import L2
from bessemer.training.methods import Adversarial, Plain

SOURCE = SparseCoding(24, 3)
PHASE = Phase(Regularised(0.01), 0.5, 220, Settled(0.3), Thresholds())


def network():
    torch.manual_seed(0)
    return SymmetricReLU(24, 30, 0.01)


def observe(network):
    return {"norm": network.weight.norm().item()}


def test_thresholds_hold_then_fall_straight():
    thresholds = Thresholds(start=4.0, hold=3.0, end=1.0, until=0.5)
    assert [thresholds(at, 100) for at in (0, 25, 50, 75, 100)] == pytest.approx([4, 3.5, 3, 2, 1])


def test_a_common_threshold_is_a_quantile_of_the_norms():
    weights = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0]])
    assert Thresholds().norms(weights).tolist() == [5, 1, 2]
    assert Thresholds(common=0.5).norms(weights).tolist() == [2, 2, 2]


def test_rates_settle_and_climb():
    settled, ramped = Settled(0.4, 0.1), Ramped(0.01, 0.2, Settled(0.4, 0.1))
    assert [settled(at, 100) for at in (0, 60, 80, 100)] == pytest.approx([1, 1, 0.55, 0.1])
    assert [ramped(at, 100) for at in (0, 10, 20, 60, 100)] == pytest.approx([0.01, 0.1, 1, 1, 0.1])


def test_the_regulariser_is_the_papers():
    model = network().double()
    model.smoothing = 0.0
    batch = Stream(SOURCE, 8, 0).next()
    batch = Batch(batch.images.double(), batch.labels, batch.index, batch.seed)
    norms = [row.norm().item() for row in model.weight.detach()]
    extra = Regularised(0.3).loss(model, batch) - Plain().loss(model, batch)
    assert extra.item() == pytest.approx(0.3 * sum(n**2 / 2 + n**3 / 3 for n in norms))


def test_thresholds_follow_the_weights_and_then_stay(tmp_path):
    model, stream = network(), Stream(SOURCE, 20, 1)
    lines = PHASE.train(model, stream, tmp_path / "clean", observe, lambda done, total: None)
    assert [lines[0]["iteration"], lines[-1]["iteration"], len(lines)] == [0, 220, 16]
    expected = 0.5 * (SOURCE.mean_square / 24) ** 0.5 * model.weight.detach().norm(dim=1)
    assert torch.allclose(model.biases, expected)
    before = model.biases.clone()
    robust = Phase(Adversarial(FGSM(L2(0.1, box=None))), 0.1, 10, Ramped())
    robust.train(model, Stream(SOURCE, 20, 2), tmp_path / "robust", observe, lambda done, total: None)
    assert torch.equal(model.biases, before)
    assert not torch.allclose(0.5 * (SOURCE.mean_square / 24) ** 0.5 * model.weight.detach().norm(dim=1), before)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", [3, 150])
def test_a_stopped_phase_goes_on_bit_for_bit(tmp_path, at):
    straight = network()
    lines = PHASE.train(straight, Stream(SOURCE, 20, 1), tmp_path / "a", observe, lambda done, total: None, seed=5)

    def stop(done, total):
        if done == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        PHASE.train(network(), Stream(SOURCE, 20, 1), tmp_path / "b", observe, stop, seed=5)
    torch.manual_seed(123)
    again = SymmetricReLU(24, 30, 1.0)
    resumed = PHASE.train(again, Stream(SOURCE, 20, 1), tmp_path / "b", observe, lambda done, total: None, seed=5)
    assert torch.equal(again.weight, straight.weight)
    timeless = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    assert [{key: value for key, value in line.items() if key != "seconds"} for line in resumed] == timeless
    # a finished phase is read, not trained
    read = SymmetricReLU(24, 30, 1.0)
    PHASE.train(read, Stream(SOURCE, 20, 1), tmp_path / "b", observe, stop, seed=5)
    assert torch.equal(read.weight, straight.weight)
    assert [json.loads(line)["iteration"] for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()] == [
        line["iteration"] for line in lines
    ]


def test_a_loss_that_is_no_number_is_told(tmp_path):
    wild = replace(PHASE, lr=1e25)  # the cube of a norm is soon infinite
    with pytest.raises(DivergedError, match="lower lr"):
        wild.train(network(), Stream(SOURCE, 20, 1), tmp_path, observe, lambda done, total: None)
