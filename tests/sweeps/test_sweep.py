"""Sweeps of the digits: complete, the same runs as one by one, gone on with after a stop, and what is refused."""

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

import bessemer as bs
from bessemer.errors import FileError, UsageError
from bessemer.records import Evaluation, Sweep
from bessemer.records.sweep import DONE, FAILED, WAITING
from bessemer.sweeps import study as studies
from bessemer.sweeps.objective import Judge, objective
from bessemer.training import Recipe, load, train

SHORT, LONGER = ["training.iterations=8"], ["training.iterations=60"]
GRID = {"grid": ["method.beta=1.0:1.5:0.5", "method.epsilon=0.8,0.84"]}
CLEAN = {"maximise": ["accuracy"]}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid of four trials, attacked with the suite of BANG's tables; and how its progress went."""
    folder = tmp_path_factory.mktemp("sweeps") / "grid"
    seen = []
    objectives = {"maximise": ["accuracy", "survives:FGS"], "minimise": ["success:HC1", "pass:FGS", "linf:FGS", "loss"]}
    found = bs.sweep(
        "bang-digits", folder, changes=LONGER, judge="bang", samples=10, watch=seen.append, **GRID, **objectives
    )
    return found, folder, seen


def test_a_grid_is_complete(grid):
    found, folder, _ = grid
    settings = [tuple(trial.values.values()) for trial in found.trials]
    assert settings == [(1.0, 0.8), (1.0, 0.84), (1.5, 0.8), (1.5, 0.84)]
    assert all(trial.state == DONE for trial in found.trials)
    assert Sweep.read(folder) == found
    assert sorted(path.name for path in folder.glob("trial-*")) == [trial.name for trial in found.trials]


def test_every_trial_is_the_run_that_train_makes(grid, tmp_path, same_weights):
    found, folder, _ = grid
    for trial in found.trials[1:3]:
        changes = [f"{key}={value}" for key, value in trial.values.items()]
        train(Recipe.named("bang-digits", [*LONGER, *changes]), tmp_path / trial.name)
        assert same_weights(folder / trial.name, tmp_path / trial.name)
        assert (folder / trial.name / "recipe.toml").read_text() == (tmp_path / trial.name / "recipe.toml").read_text()


def test_objectives_are_what_the_records_of_the_run_say(grid):
    found, folder, _ = grid
    validation = bs.data.load("digits").validation
    for trial in found.trials:
        (record,) = (folder / trial.name / "records").glob("*.json")
        evaluation = Evaluation.read(record)
        model = bs.load(folder / trial.name)
        images, labels = validation.at(slice(None))
        assert trial.measured["accuracy"] == pytest.approx((model(images).argmax(1) == labels).float().mean().item())
        assert trial.measured["survives:FGS"] == evaluation.robust_accuracy("FGS").value
        assert trial.measured["success:HC1"] == evaluation.success_rate("HC1").value
        assert trial.measured["pass:FGS"] == evaluation.produced("FGS", "pass_score")[0]
        assert trial.measured["linf:FGS"] == 255 * evaluation.produced("FGS", "linf")[0]
        assert (evaluation.data, len(evaluation)) == ("digits-validation", 10)


def test_a_trial_is_judged_by_the_weights_that_its_recipe_names(tmp_path):
    changes = [*SHORT, "evaluation.checkpoint=best", "training.validate_every=1", "optimizer.lr=1.0"]
    found = bs.sweep("digits", tmp_path / "s", changes=changes, grid=["seed=0,1,2"], **CLEAN)
    images, labels = bs.data.load("digits").validation.at(slice(None))
    differ = False
    for trial in found.trials:
        best, last = (load(tmp_path / "s" / trial.name, checkpoint=which) for which in ("best", "last"))
        with torch.no_grad():
            right, other = ((each(images).argmax(1) == labels).float().mean().item() for each in (best, last))
        assert trial.measured["accuracy"] == pytest.approx(right)
        differ |= right != other
    assert differ, "the best weights were the last ones throughout: nothing was tested"


def test_the_best_and_the_front_are_those_of_the_definition(grid):
    found, _, _ = grid
    first = found.objectives[0]
    assert found.best(first).measured[first.name] == max(trial.measured[first.name] for trial in found.trials)

    def cost(trial):
        return [(-1 if one.maximise else 1) * trial.measured[one.name] for one in found.objectives]

    front = [
        trial
        for trial in found.trials
        if not any(
            all(a <= b for a, b in zip(cost(other), cost(trial), strict=True)) and cost(other) != cost(trial)
            for other in found.trials
        )
    ]
    assert found.front() == front


def test_progress_goes_from_nothing_to_all(grid):
    _, _, seen = grid
    shares = [standing.done + standing.share for standing in seen]
    assert shares[0] == 0
    assert (seen[-1].done, seen[-1].total, seen[-1].running) == (4, 4, 0)
    assert shares == sorted(shares)


def test_the_command_of_a_trial_trains_it_alone(grid):
    found, folder, _ = grid
    assert found.trials[1].command == (
        "bessemer train bang-digits --set training.iterations=60 --set method.beta=1.0 --set method.epsilon=0.84 "
        f"--out {folder}-trial-0001"
    )
    origin = json.loads((folder / "trial-0001" / "provenance.json").read_text())["record"]
    assert origin["command"].startswith("bessemer train bang-digits --set training.iterations=60")


def test_the_same_sweep_again_has_nothing_to_do_and_another_grid_extends_it(grid, tmp_path):
    settings = {"changes": SHORT, **CLEAN}
    bs.sweep("bang-digits", tmp_path / "s", grid=["method.beta=1.0,1.5"], **settings)
    record = (tmp_path / "s" / "trial-0000" / "provenance.json").read_bytes()
    bs.sweep("bang-digits", tmp_path / "s", grid=["method.beta=1,1.5"], **settings)
    assert (tmp_path / "s" / "trial-0000" / "provenance.json").read_bytes() == record
    assert not (tmp_path / "s" / "trial-0002").exists()
    found = bs.sweep("bang-digits", tmp_path / "s", grid=["method.beta=1.0:2.0:0.5"], **settings)
    assert [trial.values["method.beta"] for trial in found.trials] == [1.0, 1.5, 2.0]
    assert (tmp_path / "s" / "trial-0000" / "provenance.json").read_bytes() == record
    for change, said in (
        ({"grid": ["method.epsilon=0.8,0.84"]}, "holds another sweep: "),
        ({"changes": ["training.iterations=9"]}, "settings.training.iterations was 8 and is now 9"),
        ({"maximise": ["accuracy", "robust"]}, "holds another sweep: objectives"),
        ({"samples": 7}, "judge.samples was 500 and is now 7"),
        ({"grid": [], "search": 2, "over": ["method.beta=1:2"]}, "holds another sweep: search was False"),
    ):
        with pytest.raises(UsageError, match=said):
            bs.sweep("bang-digits", tmp_path / "s", **{"grid": ["method.beta=1.0,1.5"], **settings, **change})


def test_what_is_stopped_waits_and_goes_on(tmp_path, same_weights):
    asked = {"changes": ["training.iterations=30"], "grid": ["seed=0,1"], **CLEAN}
    told = []
    found = bs.sweep("digits", tmp_path / "s", watch=told.append, stop=lambda: len(told) > 12, **asked)
    assert [trial.state for trial in found.trials] == [WAITING, WAITING]
    assert list((tmp_path / "s" / "trial-0000" / "checkpoints").glob("step-*"))
    found = bs.sweep("digits", tmp_path / "s", **asked)
    assert [trial.state for trial in found.trials] == [DONE, DONE]
    train(Recipe.named("digits", ["training.iterations=30", "seed=0"]), tmp_path / "alone")
    assert same_weights(tmp_path / "s" / "trial-0000", tmp_path / "alone")


def test_a_worker_that_falls_silent_elsewhere_loses_its_trial(tmp_path, monkeypatch):
    """A machine whose folder cannot be seen: only its heartbeat tells whether it lives."""
    monkeypatch.setattr(studies, "GRACE", 1)
    asked = {"changes": SHORT, "grid": ["seed=0,1"], **CLEAN}
    bs.sweep("digits", tmp_path / "s", stop=lambda: True, **asked)
    with studies.Study(studies.default_storage(tmp_path / "s"), "s", tmp_path / "elsewhere") as other:
        other.join()
        silent = other.claim()
        assert silent.run == 0
        time.sleep(2.1)
        found = bs.sweep("digits", tmp_path / "s", **asked)
        assert [trial.state for trial in found.trials] == [DONE, DONE]
        # too late: it counts for nothing
        other.finish(silent, {"accuracy": 0.0}, ["accuracy"], seconds=1.0)
        assert other.trials()[0].measured == found.trials[0].measured


def test_a_trial_whose_workers_are_killed_again_and_again_fails_for_good(tmp_path):
    bs.sweep("digits", tmp_path / "s", changes=SHORT, grid=["seed=0"], stop=lambda: True, **CLEAN)
    for _ in range(studies.ATTEMPTS):
        with studies.Study(studies.default_storage(tmp_path / "s"), "s", tmp_path / "s") as study:
            study.join()
            study.take_up()
            assert study.claim() is not None
            worker = tmp_path / "s" / "workers" / f"{study._worker}.lock"
        worker.touch()  # as a killed process leaves it
    found = bs.sweep("digits", tmp_path / "s", changes=SHORT, grid=["seed=0"], **CLEAN)
    assert [(trial.state, trial.reason) for trial in found.trials] == [(FAILED, "its workers were killed 5 times")]


@pytest.mark.parametrize(
    ("recipe", "reason"), [("digits", "the loss is"), ("adversarial-digits", "the model returns NaN")]
)
def test_a_trial_that_diverges_fails_and_the_others_go_on(tmp_path, recipe, reason):
    found = bs.sweep(recipe, tmp_path / "s", changes=SHORT, grid=["optimizer.lr=1e30,0.05"], **CLEAN)
    assert [trial.state for trial in found.trials] == [FAILED, DONE]
    assert reason in found.trials[0].reason


def test_what_cannot_be_measured_fails_the_trial_and_keeps_the_rest(tmp_path):
    """The first image is right, and no attack of the ball can move it: PASS has nothing to be the mean of."""
    found = bs.sweep(
        "digits",
        tmp_path / "s",
        changes=["training.iterations=1"],
        grid=["seed=0"],
        judge="quick",
        threat="Linf:0.000001",
        samples=2,
        maximise=["accuracy", "linf:FGSM"],
    )
    (trial,) = found.trials
    assert trial.state == FAILED
    assert trial.measured.keys() == {"accuracy"}
    assert trial.reason == "linf:FGSM is not to be had: the attack found nothing to measure"


def test_a_search_is_n_trials_within_its_ranges_and_depends_on_its_seed_alone(tmp_path):
    asked = {
        "changes": ["training.iterations=2"],
        "over": ["optimizer.lr=1e-4:1e-1:log", "training.batch_size=16:70:16", "schedule.name=inv,fixed"],
        **CLEAN,
    }
    found = bs.sweep("digits", tmp_path / "s", search=3, **asked)
    assert len(found.done) == 3
    for trial in found.trials:
        assert 1e-4 <= trial.values["optimizer.lr"] <= 1e-1
        assert trial.values["training.batch_size"] in (16, 32, 48, 64)
        assert trial.values["schedule.name"] in ("inv", "fixed")
        recipe = Recipe.read(tmp_path / "s" / trial.name / "recipe.toml")
        assert recipe.optimizer.lr == trial.values["optimizer.lr"]
    again = bs.sweep("digits", tmp_path / "again", search=3, **asked)
    assert [trial.values for trial in again.trials] == [trial.values for trial in found.trials]
    more = bs.sweep("digits", tmp_path / "s", search=4, **asked)
    assert more.trials[:3] == found.trials
    assert len(more.done) == 4
    other = bs.sweep("digits", tmp_path / "other", search=1, seed=1, **asked)
    assert other.trials[0].values != found.trials[0].values
    with pytest.raises(UsageError, match="holds another sweep: varied"):
        bs.sweep("digits", tmp_path / "s", search=4, **{**asked, "over": ["optimizer.lr=1e-3:1e-1:log"]})


def test_a_recipe_that_changes_under_a_sweep_is_not_trained(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(Recipe.named("digits", SHORT).to_toml())
    asked = {"grid": ["seed=0,1"], **CLEAN}

    def change(standing):
        if standing.done:
            own.write_text(Recipe.named("digits", ["training.iterations=9"]).to_toml())

    with pytest.raises(UsageError, match=r"own.toml has changed since the sweep began: training.iterations was 8"):
        bs.sweep(str(own), tmp_path / "s", watch=change, **asked)
    own.write_text(Recipe.named("digits", SHORT).to_toml())
    assert len(bs.sweep(str(own), tmp_path / "s", **asked).done) == 2


QUICK, BANG, MINIMAL = Judge("quick", "Linf:0.1", 10), Judge("bang", "", 10), Judge("minimal", "L2:1", 10)


@pytest.mark.parametrize(
    ("name", "judge", "said"),
    [
        ("acuracy", QUICK, "'acuracy' is not known; did you mean 'accuracy'"),
        ("robust", BANG, "the suite bang has no attack with a bound"),
        ("survives:FGSN", QUICK, "'FGSN' is not known; did you mean 'FGSM'"),
        ("success:FGS", QUICK, "attack of the suite quick"),
        ("sucess:FGSM", QUICK, "'sucess' is not known; did you mean 'success'"),
        ("pass:FGSM", QUICK, "the suite quick does not measure PASS; choose --judge bang"),
        ("median:FGSM", QUICK, "looks inside a ball"),
    ],
)
def test_an_objective_that_nobody_measures_is_refused(name, judge, said):
    with pytest.raises(UsageError, match=said):
        objective(name, True, judge)


def test_an_objective_of_a_minimal_attack_is_its_median():
    assert objective("median:DDN, L2", True, MINIMAL).meaning == "median distance to what DDN, L2 finds"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "either a grid .* or a search"),
        ({"grid": ["seed=0"], "search": 2, "over": ["seed=0:9"]}, "either a grid .* or a search"),
        ({"search": 2}, "go together"),
        ({"grid": ["seed=0"], "over": ["optimizer.lr=0.1:0.2"]}, "go together"),
        ({"search": 0, "over": ["seed=0:9"]}, "--search should be at least 1, found 0"),
        ({"grid": ["seed=0"], "workers": 0}, "--workers should be at least 1, found 0"),
        ({"grid": ["seed=0"], "samples": 0}, "--samples should be at least 1, found 0"),
        ({"grid": ["seed=0"], "images": "trainin"}, "did you mean|allowed: test, validation"),
        ({"grid": ["seed=0"], "judge": "quik"}, "did you mean 'quick'"),
        ({"grid": ["seed=0"], "maximise": ["accuracy"], "minimise": ["accuracy"]}, "named twice"),
        ({"grid": ["seed=0"], "storage": "mysql://u:s3cret@h/d"}, "not in mysql"),
        ({"grid": ["seed=0"], "storage": "s3cret"}, "that is no address"),
    ],
)
def test_wrong_questions_are_refused_and_leave_nothing(tmp_path, asked, said):
    with pytest.raises(UsageError, match=said) as refused:
        bs.sweep("digits", tmp_path / "s", **asked)
    assert "s3cret" not in str(refused.value)
    assert not (tmp_path / "s").exists()


def test_a_storage_where_nobody_answers_is_told_without_its_password(tmp_path):
    with pytest.raises(UsageError, match=r"--storage postgresql\+psycopg2://me:\*\*\*@127.0.0.1:1/d: ") as refused:
        bs.sweep("digits", tmp_path / "s", grid=["seed=0"], storage="postgresql://me:s3cret@127.0.0.1:1/d")
    assert "s3cret" not in str(refused.value)


def test_without_optuna_one_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("study", "worker"):
        monkeypatch.delitem(sys.modules, f"bessemer.sweeps.{name}", raising=False)
        monkeypatch.delattr(bs.sweeps, name, raising=False)
    with pytest.raises(UsageError, match=r"pip install 'bessemer\[sweep\]'"):
        bs.sweep("digits", tmp_path / "s", grid=["seed=0"])


def test_a_run_or_a_damaged_record_is_no_sweep(tmp_path, grid):
    found, _, _ = grid
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(UsageError, match="is a run"):
        bs.sweep("digits", tmp_path, grid=["seed=0"])
    path = replace(found, name="copy").write(tmp_path)
    assert Sweep.read(path).name == "copy"
    path.write_bytes(path.read_bytes().replace(b"copy", b"cope"))
    with pytest.raises(FileError, match="damaged"):
        Sweep.read(path)
