"""Runs: what a kill, a second process, a damaged file or a full disk does to them."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from bessemer.errors import DivergedError, FileError, RunInUseError, UsageError
from bessemer.records import files
from bessemer.training import Checkpoint, Recipe, load, train
from bessemer.training.checkpoint import newest, steps

SMALL = [
    "training.iterations=60",
    "training.checkpoint_every=20",
    "training.log_every=10",
    "training.validate_every=30",
]


def recipe(*changes):
    return Recipe.named("bang-digits", [*SMALL, *changes])


def weights(folder):
    return Checkpoint.read(newest(folder)).weights


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(recipe(), folder)
    return folder


def test_a_run_leaves_a_complete_folder(undisturbed):
    assert {path.name for path in undisturbed.iterdir()} >= {"recipe.toml", "metrics.jsonl", "checkpoints"}
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == [
        "best.safetensors", "initial.safetensors", "step-00000040.safetensors", "step-00000060.safetensors",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [10, 20, 30, 40, 50, 60]
    assert [line["iteration"] for line in lines if "validation_accuracy" in line] == [30, 60]
    assert load(undisturbed).recipe.tables == recipe().tables


def test_checkpoints_that_are_asked_for_stay(tmp_path, undisturbed):
    train(recipe("training.keep_every=15"), tmp_path)
    assert [path.stem for path in steps(tmp_path)] == [f"step-{done:08d}" for done in (15, 30, 45, 60)]
    halfway = Checkpoint.read(tmp_path / "checkpoints" / "step-00000030.safetensors")
    assert halfway.iteration == 30
    assert same(weights(tmp_path), weights(undisturbed))
    with pytest.raises(UsageError, match="keep_every should be at least 1, or 0"):
        recipe("training.keep_every=-1")


def test_the_initial_weights_are_kept_and_are_where_training_began(undisturbed):
    initial = Checkpoint.read(undisturbed / "checkpoints" / "initial.safetensors")
    assert initial.iteration == 0
    assert not same(initial.weights, weights(undisturbed))


def test_the_same_recipe_trains_to_the_same_weights(undisturbed, tmp_path):
    train(recipe(), tmp_path / "again")
    assert same(weights(tmp_path / "again"), weights(undisturbed))
    train(recipe("seed=1"), tmp_path / "other")
    assert not same(weights(tmp_path / "other"), weights(undisturbed))


def test_a_stopped_run_goes_on_to_the_same_weights(undisturbed, tmp_path):
    folder = tmp_path / "stopped"
    for stop_at in (7, 33, 41):
        seen = []
        train(recipe(), folder, resume=folder.exists(), watch=lambda moment, seen=seen: seen.append(moment.iteration),
              stop=lambda seen=seen, at=stop_at: len(seen) > 0 and seen[-1] >= at - 1)  # fmt: skip
        assert newest(folder).name == f"step-{stop_at:08d}.safetensors"
    train(recipe(), folder, resume=True)
    assert same(weights(folder), weights(undisturbed))
    before, after = ((f / "metrics.jsonl").read_text().splitlines() for f in (undisturbed, folder))
    stripped = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in part] for part in (before, after)
    ]
    assert [line["iteration"] for line in stripped[0]] == [line["iteration"] for line in stripped[1]]
    assert stripped[0][-1] == stripped[1][-1]


def test_what_is_noted_of_the_model_is_there_once_after_a_kill_and_training_does_not_feel_it(undisturbed, tmp_path):
    def note(model):
        return {"noted": sum(parameter.double().sum().item() for parameter in model.parameters())}

    def noted(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["iteration"], line["noted"]) for line in lines if "noted" in line]

    def die(moment):
        if moment.iteration == 33:  # 30 was noted, but after the last checkpoint
            raise KeyboardInterrupt

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe(), whole, note=note)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), killed, note=note, watch=die)
    assert [iteration for iteration, _ in noted(killed)] == [0, 30]
    train(recipe(), killed, resume=True, note=note)
    assert same(weights(killed), weights(undisturbed))
    assert noted(killed) == noted(whole)
    assert [iteration for iteration, _ in noted(whole)] == [0, 30, 60]
    assert noted(undisturbed) == []


KILLED = """
import sys
from bessemer.training import Recipe, train
train(Recipe.named("bang-digits", sys.argv[2:]), sys.argv[1], resume=True, watch=lambda moment: print(moment.iteration,
flush=True))
"""


def test_a_run_killed_five_times_ends_in_the_weights_of_an_undisturbed_one(tmp_path):
    """SIGKILL at random moments, checkpoint writing included."""
    changes = ["training.iterations=400", "training.checkpoint_every=3", "training.log_every=10"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), *changes]
    chance = random.Random(time.time_ns())
    for kill in range(5):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        goal = 40 + 60 * kill + chance.randrange(40)
        for line in process.stdout:
            if int(line) >= goal:
                time.sleep(chance.random() * 0.02)
                break
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    train(Recipe.named("bang-digits", changes), tmp_path / "killed", resume=True)
    train(Recipe.named("bang-digits", changes), tmp_path / "quiet")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "quiet"))


def test_every_byte_of_a_checkpoint_counts(undisturbed, tmp_path):
    folder = tmp_path / "damaged"
    target = folder / "checkpoints" / "step-00000060.safetensors"
    target.parent.mkdir(parents=True)
    content = newest(undisturbed).read_bytes()
    places = [*range(0, 2000, 37), *range(2000, len(content), len(content) // 40), len(content) - 1]
    for place in places:
        altered = bytearray(content)
        altered[place] ^= 0x01
        target.write_bytes(altered)
        with pytest.raises(FileError, match="damaged"):
            Checkpoint.read(target)
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        target.write_bytes(content[:length])
        with pytest.raises(FileError, match="damaged"):
            Checkpoint.read(target)
    target.write_bytes(content)
    assert Checkpoint.read(target).iteration == 60


def test_a_damaged_checkpoint_names_the_one_to_go_on_from(tmp_path, undisturbed):
    folder = tmp_path / "damaged"
    train(recipe(), folder)
    last = newest(folder)
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(FileError, match=r"delete it to go on from step-00000040\.safetensors"):
        train(recipe(), folder, resume=True)
    last.unlink()
    train(recipe(), folder, resume=True)
    assert same(weights(folder), weights(undisturbed))


def test_a_run_is_not_overwritten_or_mixed_with_another(undisturbed):
    with pytest.raises(UsageError, match="--resume"):
        train(recipe(), undisturbed)
    with pytest.raises(UsageError, match=r"method\.epsilon was 0\.84 and is now 0\.5"):
        train(recipe("method.epsilon=0.5"), undisturbed, resume=True)


def test_a_folder_that_is_no_run_keeps_its_files(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("somebody else's")
    with pytest.raises(UsageError, match="holds other files and is no run"):
        train(recipe(), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "somebody else's"


def test_a_run_that_could_not_start_leaves_nothing_in_the_way(tmp_path):
    with pytest.raises(UsageError, match="lr should be"):
        train(recipe("optimizer.lr=nan"), tmp_path / "x")
    train(recipe(), tmp_path / "x")


def test_metrics_that_went_missing_are_not_padded(tmp_path):
    folder = tmp_path / "x"
    train(recipe(), folder, stop=lambda: True)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(FileError, match=r"metrics\.jsonl is missing or shorter"):
        train(recipe(), folder, resume=True)


def test_a_model_knows_how_far_it_has_come(undisturbed, tmp_path):
    assert load(undisturbed).iteration == 60
    assert train(recipe(), tmp_path / "x", stop=lambda: True).iteration == 1
    assert load(tmp_path / "x").iteration == 1


def test_a_device_that_is_not_here_is_refused(undisturbed, tmp_path):
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(UsageError, match=f"device: '{device}' is not here"):
            load(undisturbed, device)
        with pytest.raises(UsageError, match=f"device: '{device}' is not here"):
            train(recipe(), tmp_path / "x", device=device)


def test_a_run_in_use_is_left_alone(tmp_path):
    folder = tmp_path / "busy"
    refused = []

    def intrude(moment):
        if moment.iteration == 5:
            with pytest.raises(RunInUseError, match="in use"):
                train(recipe(), folder, resume=True)
            refused.append(True)

    train(recipe(), folder, watch=intrude)
    assert refused == [True]


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, monkeypatch, undisturbed):
    folder, count = tmp_path / "full", 0
    real = os.fsync

    def full(handle):
        nonlocal count
        count += 1
        if count > 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FileError, match=r"no space left to write .*--resume"):
        train(recipe(), folder)
    monkeypatch.undo()
    assert steps(folder)
    assert not list((folder / "checkpoints").glob(".*"))
    train(recipe(), folder, resume=True)
    assert same(weights(folder), weights(undisturbed))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder = tmp_path / "swapped"
    train(recipe(), folder)
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace('"digits-net"', '"lenet"'))
    with pytest.raises(FileError, match="holds a digits-net, but the recipe asks for a lenet"):
        load(folder)
    (folder / "recipe.toml").write_text(text.replace("classes = 10", "classes = 7"))
    with pytest.raises(FileError, match="weights of another digits-net"):
        load(folder)


def test_a_recipe_that_was_only_reworded_is_gone_on_with(tmp_path):
    train(Recipe.named("digits", ["training.iterations=1"]), tmp_path)
    train(Recipe.named("digits", ["training.iterations=1", "about=in other words"]), tmp_path, resume=True)
    with pytest.raises(UsageError, match=r"another recipe: .*seed"):
        train(Recipe.named("digits", ["training.iterations=1", "seed=1"]), tmp_path, resume=True)


def test_what_is_no_run_is_not_opened(tmp_path):
    with pytest.raises(UsageError, match="is no run"):
        load(tmp_path)


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tmp_path):
    with pytest.raises(DivergedError, match=r"lower optimizer\.lr \(now 1e\+20\)"):
        train(Recipe.named("digits", [*SMALL, "optimizer.lr=1e20"]), tmp_path / "diverged")


def test_data_of_another_shape_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"lenet takes images of shape \(1, 28, 28\), but digits has \(1, 8, 8\)"):
        train(Recipe.named("digits", ["model.name=lenet"]), tmp_path / "x")
    with pytest.raises(UsageError, match=r"set model\.classes = 10"):
        train(Recipe.named("digits", ["model.classes=7"]), tmp_path / "y")
