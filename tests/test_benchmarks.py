"""Benchmarks that need a GPU run here, small, on the CPU: their code works, their arithmetic is that of the page."""

import sys
from functools import partial
from pathlib import Path

import pytest

from bessemer.models import ResNet

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def adversarial_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import adversarial_gpu

    yield adversarial_gpu
    sys.modules.pop("adversarial_gpu", None)


def test_the_gpu_benchmark_counts_the_passes_of_adversarial_training(adversarial_gpu, monkeypatch):
    monkeypatch.setattr(adversarial_gpu, "seconds", lambda run, device, times: (run(), 0.5)[1])
    kinds = (("float32", False, False), ("bfloat16", True, False))
    found = adversarial_gpu.measure(partial(ResNet, depth=8, width=4), "cpu", (8,), steps=2, size=64, kinds=kinds)
    assert list(found) == ["float32, batch 8", "bfloat16, channels last, batch 8"]
    # by hand: 3×3 convolutions of stages 4, 8 and 16 channels wide at 32², 16² and 8² places, and a linear layer
    first = (3 * 4 + 2 * 4 * 4) * 9 * 32 * 32
    second = (4 * 8 + 8 * 8) * 9 * 16 * 16
    third = (8 * 16 + 16 * 16) * 9 * 8 * 8 + 160
    work = 7 * (first + second + third)
    for row in found.values():
        assert row["images_per_second"] == 16
        assert row["share_of_matrix_rate"] == pytest.approx(16 * work / (64**3 / 0.5), rel=1e-3)


def test_a_time_is_the_median_of_calls_that_are_warm(adversarial_gpu):
    calls = []
    assert adversarial_gpu.seconds(lambda: calls.append(1), "cpu", 4) >= 0
    assert len(calls) == 7
