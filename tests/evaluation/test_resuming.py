"""A stopped evaluation goes on where it was, and several processes find what one finds."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from bessemer.attacks import APGD, PGD, Attack, Square, Transfer
from bessemer.data import load
from bessemer.evaluation import Suite, evaluate
from bessemer.evaluation.suites import through
from bessemer.records import Evaluation
from bessemer.threat import Linf

THREAT = Linf(0.08)
SUITE = Suite(
    "small standard",
    {"APGD-CE": APGD(THREAT, steps=10), "PGD": PGD(THREAT, steps=10), "Square": Square(THREAT, queries=60)},
    cascade=True,
    curve=("PGD",),
)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images, labels = load("digits").train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def pair():
    return load("digits").test.at(slice(0, 120))


def records(evaluation):
    """All that was found; where and how long it ran is not part of it."""
    return {key: value for key, value in evaluation.to_json().items() if key != "provenance"}


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def whole(model):
    return evaluate(model, pair(), SUITE, batch_size=50)


def test_what_was_found_is_not_asked_again(model, whole, tmp_path, monkeypatch):
    ran = []
    original = Attack.run

    def run(self, *arguments, **settings):
        ran.append(type(self).__name__)
        if len(ran) == stop_after:
            raise KeyboardInterrupt
        return original(self, *arguments, **settings)

    monkeypatch.setattr(Attack, "run", run)
    stop_after = 8  # in the second batch
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, pair(), SUITE, batch_size=50, resume=tmp_path / "journal")
    before, stop_after = len(ran), 0
    found = evaluate(model, pair(), SUITE, batch_size=50, resume=tmp_path / "journal")
    assert records(found) == records(whole)
    ran.clear()
    again = evaluate(model, pair(), SUITE, batch_size=50, resume=tmp_path / "journal")
    assert not ran, "everything was on disk"
    assert records(again) == records(whole)
    assert before == 8


def test_another_question_begins_anew(model, whole, tmp_path):
    folder = tmp_path / "journal"
    evaluate(model, pair(), SUITE, batch_size=50, resume=folder)
    other = network()
    with torch.no_grad():
        other[1].weight.mul_(1.5)
    found = evaluate(other, pair(), SUITE, batch_size=50, resume=folder)
    assert records(found) == records(evaluate(other, pair(), SUITE, batch_size=50))
    images, labels = pair()
    swapped = (images.flip(0), labels.flip(0))
    assert records(evaluate(other, swapped, SUITE, batch_size=50, resume=folder)) == records(
        evaluate(other, swapped, SUITE, batch_size=50)
    )


def test_another_surrogate_is_another_question(model, tmp_path):
    other = network()
    with torch.no_grad():
        other[1].weight.mul_(-1)
    for surrogate in (model, other):
        suite = through(SUITE, surrogate)
        found = evaluate(model, pair(), suite, batch_size=50, resume=tmp_path / "journal")
        assert records(found) == records(evaluate(model, pair(), suite, batch_size=50))


class Rounded(nn.Module):
    """Answers about rounded pixels; its gradient is zero, unless it is told to look through the rounding."""

    def __init__(self, inner, straight_through):
        super().__init__()
        self.inner, self.straight_through = inner, straight_through

    def forward(self, x):
        rounded = (x * 255).round() / 255
        return self.inner(x + (rounded - x).detach() if self.straight_through else rounded)


def test_a_model_whose_gradient_was_mended_is_another_question(model, tmp_path):
    suite = Suite("pgd", {"PGD": PGD(THREAT, steps=5)})
    masked = evaluate(Rounded(model, False), pair(), suite, batch_size=50, resume=tmp_path / "journal")
    mended = evaluate(Rounded(model, True), pair(), suite, batch_size=50, resume=tmp_path / "journal")
    assert mended.robust_accuracy("PGD").count < masked.robust_accuracy("PGD").count
    assert records(mended) == records(evaluate(Rounded(model, True), pair(), suite, batch_size=50))


def test_what_is_made_with_a_function_without_a_name_is_not_kept(model, tmp_path):
    said = []
    suite = Suite("transfer", {"PGD": Transfer(PGD(THREAT, steps=2), lambda images: model(images))})
    evaluate(model, pair(), suite, batch_size=50, resume=tmp_path / "journal", say=said.append)
    assert any("<lambda>, which no name tells from others; what is found is not kept" in one for one in said)
    assert not list(tmp_path.rglob("0*"))


def test_the_same_images_at_another_place_are_asked_about_again(model, tmp_path):
    images, labels = pair()
    parts = [(images[:60], labels[:60]), (images[60:], labels[60:])]
    fewer = [(images[:20], labels[:20]), (images[60:], labels[60:])]
    evaluate(model, parts, SUITE, batch_size=60, resume=tmp_path / "journal")
    found = evaluate(model, fewer, SUITE, batch_size=60, resume=tmp_path / "journal")
    assert records(found) == records(evaluate(model, fewer, SUITE, batch_size=60))


def test_a_damaged_part_is_found_again(model, whole, tmp_path):
    folder = tmp_path / "journal"
    evaluate(model, pair(), SUITE, batch_size=50, resume=folder)
    for path in sorted(folder.iterdir())[1::3]:
        path.write_bytes(path.read_bytes()[:-40])
    assert records(evaluate(model, pair(), SUITE, batch_size=50, resume=folder)) == records(whole)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_resuming as this
from bessemer.evaluation import evaluate
print("begun", flush=True)
evaluate(this.network(), this.pair(), this.SUITE, batch_size=4, resume=sys.argv[2]).save(sys.argv[3])
"""


def test_killed_at_any_moment_the_records_are_the_same(tmp_path):
    """SIGKILL three times at random moments, then to the end; against one run that nobody disturbed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = evaluate(network(), pair(), SUITE, batch_size=4)
    torch.set_num_threads(threads)
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", SCRIPT, here, str(tmp_path / "journal"), str(tmp_path / "out")]
    random = np.random.default_rng()
    kept = []
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0.3, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kept.append(len(list((tmp_path / "journal").glob("*"))))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    (path,) = (tmp_path / "out").glob("*.json")
    assert records(Evaluation.read(path)) == records(expected)
    assert kept == sorted(kept), "a kill lost what was found before"


def work(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        evaluate(network(), pair(), SUITE, batch_size=50).save(f"{folder}/{rank}")
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch is built without torch.distributed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_find_what_one_finds(tmp_path):
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = evaluate(network(), pair(), SUITE, batch_size=50)
    torch.set_num_threads(threads)
    multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        (path,) = (tmp_path / str(rank)).glob("*.json")
        found = Evaluation.read(path)
        assert records(found) == records(expected)
        assert found.provenance["processes"] == 2
