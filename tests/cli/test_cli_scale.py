"""A folder of ImageNet's shape through everything, by several processes: trained, killed, gone on with, judged."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bessemer.training import load

CLASSES = 1000
RECIPE = """
[data]
name = "image-folder"
path = "images"
size = 32
resize = 40
held_out = 1
workers = 1
[model]
name = "bottleneck-resnet"
depth = [1, 1, 1, 1]
width = 4
size = 32
[method]
name = "adversarial"
attack = {name = "pgd", threat = "Linf:16/255", steps = 1}
[augmentation]
flip = true
jitter = 0.4
lighting = 0.1
[optimizer]
lr = 0.01
[training]
batch_size = 48
iterations = 30
log_every = 1
checkpoint_every = 2
validate_every = 30
[evaluation]
suite = "quick"
threat = "Linf:16/255"
"""
BESSEMER = [sys.executable, "-m", "bessemer"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bessemer"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A thousand classes of three JPEG files."""
    folder = tmp_path_factory.mktemp("scale")
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        for part, count in (("train", 2), ("val", 1)):
            place = folder / "images" / part / f"n{label:08d}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (6, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).resize((64, 48)).save(place / f"{number}.JPEG", quality=80)
    (folder / "small.toml").write_text(RECIPE)
    return folder


def environment(here):
    return {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(here / "cache")}


def run(here, command, line):
    return subprocess.run(
        [*command, *shlex.split(line)], cwd=here, env=environment(here), capture_output=True, text=True, check=False
    )


def test_a_thousand_classes_are_trained_killed_gone_on_with_and_judged(here):
    line = "train small.toml --out run"
    process = subprocess.Popen(
        [*TORCHRUN, *shlex.split(line)], cwd=here, env=environment(here),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list((here / "run/checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.1)
    # each has a session of its own
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    for each in (process.pid, *map(int, workers)):
        os.kill(each, signal.SIGKILL)
    process.wait()
    reached = load(here / "run").iteration
    assert 0 < reached < 30
    epoch = 1000 / 48
    assert reached % epoch, "killed in the middle of an epoch"

    done = run(here, BESSEMER, f"{line} --resume")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in (here / "run/metrics.jsonl").read_text().splitlines()]
    assert [each["iteration"] for each in lines if "loss" in each] == list(range(1, 31))
    assert all(0 < each["loss"] < 20 for each in lines if "loss" in each)

    done = run(here, TORCHRUN, "evaluate run --samples 60")
    assert done.returncode == 0, done.stderr
    assert "PGD-20" in done.stdout
    done = run(here, BESSEMER, "report run --out page.html")
    assert done.returncode == 0, done.stderr
    assert "PGD-20" in (here / "page.html").read_text()


def test_an_unreadable_file_ends_the_job_with_its_reason_and_can_be_skipped(here):
    damaged = here / "images/train/n00000007/0.JPEG"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    try:
        line = "train small.toml --out damaged --set data.held_out=0 --set training.iterations=45"
        refused = run(here, TORCHRUN, line)
        assert refused.returncode != 0
        assert "n00000007/0.JPEG cannot be read as an image" in " ".join(refused.stderr.split())
        skipped = run(here, BESSEMER, f"{line.replace('damaged', 'skipped')} --set data.unreadable=skip")
        assert skipped.returncode == 0, skipped.stderr
        assert "n00000007/0.JPEG" in skipped.stderr
    finally:
        damaged.write_bytes(whole)


def test_a_batch_that_the_processes_cannot_share_is_refused_in_a_sentence(here):
    done = run(here, TORCHRUN, "train small.toml --out odd --set training.batch_size=33")
    assert done.returncode != 0
    assert "33 images cannot be shared out evenly among 2 processes" in " ".join(done.stderr.split())
