"""Workers as processes: no point twice, a kill costs nothing, and none outlives its command."""

import importlib
import json
import signal
import subprocess
import sys
import time

import optuna
import pytest

import bessemer as bs
from bessemer.records.sweep import DONE, WAITING
from bessemer.sweeps import study as studies
from bessemer.training import Recipe, train

sweep_module = importlib.import_module("bessemer.sweeps.sweep")  # whose name its function bears
SHORT = ["training.iterations=8"]
LONG = ["training.iterations=400", "training.checkpoint_every=10"]
CLEAN = {"maximise": ["accuracy"]}


def trials_of(folder):
    storage = optuna.storages.RDBStorage(studies.default_storage(folder))
    try:
        return optuna.load_study(storage=storage, study_name=folder.name).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def wait_for(process, seen):
    while not seen():
        assert process.poll() is None
        time.sleep(0.02)


def test_two_workers_never_do_the_same_point(tmp_path):
    found = bs.sweep("digits", tmp_path / "s", changes=SHORT, grid=["seed=0:5:1"], workers=2, **CLEAN)
    assert [trial.values["seed"] for trial in found.trials] == list(range(6))
    trials = trials_of(tmp_path / "s")
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * 6
    assert not list((tmp_path / "s" / "workers").iterdir())


def test_workers_at_once_claim_every_trial_once(tmp_path, claimed_by_several):
    assert claimed_by_several(studies.default_storage(tmp_path / "s"), 30) == list(range(30))


def test_a_killed_trial_goes_on_to_the_weights_of_an_undisturbed_one(tmp_path, same_weights):
    asked = {"changes": LONG, "grid": ["seed=0,1"], **CLEAN}
    arguments = f"'digits', {str(tmp_path / 's')!r}, **{asked!r}"
    victim = subprocess.Popen([sys.executable, "-c", f"import bessemer; bessemer.sweep({arguments})"])
    first = tmp_path / "s" / "trial-0000"
    wait_for(victim, lambda: list(first.glob("checkpoints/step-*")))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    came_to = max(int(path.stem.split("-")[1]) for path in first.glob("checkpoints/step-*.safetensors"))
    assert came_to < 400
    seen = []
    found = bs.sweep("digits", tmp_path / "s", watch=seen.append, **asked)
    assert [trial.state for trial in found.trials] == [DONE, DONE]
    # neither from the start again, nor the other one first
    assert next(standing.share for standing in seen if standing.share) > came_to / 400 - 1e-9
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(50, 401, 50))
    train(Recipe.named("digits", [*LONG, "seed=0"]), tmp_path / "alone")
    assert same_weights(first, tmp_path / "alone")


def test_a_worker_ends_with_the_input_that_its_command_holds(tmp_path):
    """So it does when the command is killed; its trial is saved and waits."""
    folder = tmp_path / "s"
    asked = {"changes": ["training.iterations=100000"], "grid": ["seed=0,1"], **CLEAN}
    bs.sweep("digits", folder, stop=lambda: True, **asked)
    worker = subprocess.Popen(
        [sys.executable, "-c", sweep_module._IN_A_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    place = {"storage": studies.default_storage(folder), "study": "s", "folder": str(folder), "recipe": "digits"}
    place |= {"changes": asked["changes"], "keys": ["seed"], "device": "cpu", "data_dir": None}
    worker.stdin.write(json.dumps(place).encode() + b"\n")
    worker.stdin.flush()
    wait_for(worker, lambda: (folder / "trial-0000" / "metrics.jsonl").exists())
    said, _ = worker.communicate()
    assert worker.returncode == 0
    assert all(0 <= json.loads(line)["share"] < 1 for line in said.splitlines())
    assert list((folder / "trial-0000" / "checkpoints").glob("step-*"))
    with studies.Study(place["storage"], "s", folder) as study:
        study.join()
        assert [trial.state for trial in study.trials()] == [WAITING, WAITING]


def test_what_a_worker_refuses_is_what_the_command_refuses(tmp_path, monkeypatch):
    refuses = "import json; print(json.dumps({'error': 'no such data', 'exit_code': 2})); raise SystemExit(2)"
    monkeypatch.setattr(sweep_module, "_IN_A_CHILD", refuses)
    with pytest.raises(bs.BessemerError, match="^no such data$") as refused:
        bs.sweep("digits", tmp_path / "s", grid=["seed=0"], workers=2, **CLEAN)
    assert refused.value.exit_code == 2


def test_workers_that_all_die_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "_IN_A_CHILD", "import os; os.abort()")
    with pytest.raises(bs.BessemerError, match="every worker ended early, the first with -6; the same command goes on"):
        bs.sweep("digits", tmp_path / "s", grid=["seed=0"], workers=2, **CLEAN)
