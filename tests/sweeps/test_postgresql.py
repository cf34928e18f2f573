"""Sweeps over a real PostgreSQL: as many machines as there are folders, and every point done exactly once."""

import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

import bessemer as bs
from bessemer.errors import UsageError
from bessemer.records.sweep import DONE, RUNNING
from bessemer.sweeps.study import Study

ASKED = {"changes": ["training.iterations=60"], "grid": ["seed=0:7:1"], "maximise": ["accuracy"], "study": "shared"}


ONE_MACHINE = """
import pathlib, sys, time
import bessemer

_, begun, folder, asked = sys.argv

def wait(standing):  # in its first trial, until the other machine has begun one
    while not pathlib.Path(begun).exists():
        time.sleep(0.02)

bessemer.sweep("digits", folder, storage=sys.stdin.read(), watch=wait, **eval(asked))
"""


def test_two_machines_share_a_grid_and_do_every_point_once(postgresql, tmp_path):
    """Two commands that see neither each other's folder nor each other's process."""
    begun, one, two = tmp_path / "begun", tmp_path / "one", tmp_path / "two"
    other = subprocess.Popen([sys.executable, "-c", ONE_MACHINE, begun, one, repr(ASKED)], stdin=subprocess.PIPE)
    other.stdin.write(postgresql.encode())
    other.stdin.close()
    while not (one / "workers").exists():
        assert other.poll() is None
        time.sleep(0.02)
    with Study(postgresql, "shared", two) as study:
        while not study.question:
            time.sleep(0.02)
        study.join()
        while not any(trial.state == RUNNING for trial in study.trials()):
            time.sleep(0.02)
    bs.sweep("digits", two, storage=postgresql, watch=lambda standing: begun.touch(), **ASKED)
    assert other.wait(timeout=60) == 0
    url = postgresql.replace("postgresql://", "postgresql+psycopg2://")
    storage = optuna.storages.RDBStorage(url)
    trials = optuna.load_study(storage=storage, study_name="shared").get_trials()
    storage.remove_session()
    storage.engine.dispose()
    assert sorted(trial.user_attrs["values"]["seed"] for trial in trials) == list(range(8))
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    folders = [sorted(path.name for path in (tmp_path / name).glob("trial-*")) for name in ("one", "two")]
    assert sorted(folders[0] + folders[1]) == [f"trial-{run:04d}" for run in range(8)]
    records = [bs.records.Sweep.read(tmp_path / name) for name in ("one", "two")]
    assert [trial.measured for trial in records[0].trials] == [trial.measured for trial in records[1].trials]
    assert all(trial.state == DONE for trial in records[0].trials)
    for path in Path(tmp_path).rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path


def test_the_second_command_joins_a_finished_sweep_and_another_question_is_refused(postgresql, tmp_path):
    asked = {**ASKED, "grid": ["seed=0,1"], "study": "joined"}
    first = bs.sweep("digits", tmp_path / "one", storage=postgresql, **asked)
    second = bs.sweep("digits", tmp_path / "two", storage=postgresql, **asked)
    assert [trial.measured for trial in second.trials] == [trial.measured for trial in first.trials]
    assert not list((tmp_path / "two").glob("trial-*"))
    with pytest.raises(UsageError, match="settings.training.iterations was 60 and is now 9"):
        bs.sweep("digits", tmp_path / "two", storage=postgresql, **{**asked, "changes": ["training.iterations=9"]})


def test_workers_at_once_claim_every_trial_once(postgresql, claimed_by_several):
    assert claimed_by_several(postgresql, 30) == list(range(30))


def test_a_wrong_password_is_told_without_showing_it(postgresql, tmp_path):
    wrong = postgresql.replace("s3cret", "s3cr3t")
    with pytest.raises(UsageError, match="password authentication failed") as refused:
        bs.sweep("digits", tmp_path / "s", grid=["seed=0"], storage=wrong)
    assert "s3cr3t" not in str(refused.value)
