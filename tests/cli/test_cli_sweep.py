"""`bessemer sweep`, as a new user types it."""

import re
import shlex
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from bessemer.arithmetic import flushed
from bessemer.cli import main
from bessemer.cli import sweep as command
from bessemer.records import Sweep

SHORT = "--set training.iterations=20 --samples 5"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BESSEMER_STORAGE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    with flushed():
        yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def bessemer(monkeypatch, capsys):
    """Types a command line; returns exit code, standard output and standard error."""

    def typed(line):
        monkeypatch.setattr(sys, "argv", ["bessemer", *shlex.split(line)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        return code, out, err

    return typed


def weights(folder):
    found = load_file(sorted((folder / "checkpoints").glob("step-*"))[-1])
    return {name: tensor for name, tensor in found.items() if name.startswith("weights/")}


def test_a_grid_shows_the_front_its_page_and_the_command_of_a_trial(bessemer, tmp_path):
    code, out, err = bessemer(f"sweep bang-digits {SHORT} --grid method.beta=1.0:1.5:0.5 --grid method.epsilon=0.8")
    assert code == 0
    folder = tmp_path / "runs" / "bang-digits-sweep"
    assert "Pareto front of 2 trials" in out
    assert "Open runs/bang-digits-sweep/report.html" in out
    assert (folder / "report.html").is_file()
    assert "bang-digits-sweep" in err  # the bar
    assert "2/2" in err
    found = Sweep.read(folder)
    assert [one.name for one in found.objectives] == ["accuracy", "robust"]
    alone = re.search("The first alone: bessemer (train .*)", out)[1]
    code, out, _ = bessemer(alone)
    assert code == 0
    trial = found.front()[0]
    mine, theirs = weights(folder / trial.name), weights(folder.with_name(f"{folder.name}-{trial.name}"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    code, out, _ = bessemer(f"report runs/bang-digits-sweep/{trial.name}")
    assert code == 0
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    code, out, _ = bessemer("report runs/bang-digits-sweep")
    assert (code, (folder / "report.html").read_text()) == (0, page)
    code, _, err = bessemer("report runs/bang-digits-sweep runs/bang-digits-sweep")
    assert code == 2
    assert "which has a page of its own" in err


def test_a_search_for_one_objective_shows_the_best(bessemer):
    code, out, _ = bessemer(f"sweep digits {SHORT} --search 2 --over optimizer.lr=0.01:0.1:log --minimise loss --out s")
    assert code == 0
    assert "Best of 2 trials" in out
    assert "optimizer.lr" in out


def test_ctrl_c_saves_and_says_how_to_go_on(bessemer, monkeypatch, tmp_path):
    line = "sweep digits --set training.iterations=30 --grid seed=0,1 --maximise accuracy --out s"
    bar, pressed = command._bar, []

    def interrupting(bars, name):
        show = bar(bars, name)

        def told(standing):
            if standing.share > 0.3 and not pressed:
                pressed.append(True)
                signal.raise_signal(signal.SIGINT)
            show(standing)

        return told

    with monkeypatch.context() as patch:
        patch.setattr(command, "_bar", interrupting)
        code, _, err = bessemer(line)
    assert code == 130
    assert "stopped and saved after 0 of 2 trials; the same command goes on" in err
    assert list((tmp_path / "s" / "trial-0000" / "checkpoints").glob("step-*"))
    code, out, _ = bessemer(line)
    assert code == 0
    assert "Best of 2 trials" in out


def test_a_sweep_of_failures_fails_and_says_why(bessemer):
    code, out, err = bessemer(f"sweep digits {SHORT} --grid optimizer.lr=1e30 --maximise accuracy")
    assert code == 1
    assert "1 failed" in out
    assert "no trial came to an end; the first: the loss is" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sweep bang-digits --grid method.bta=1,2", "'bta' is not known; did you mean 'beta'"),
        ("sweep bang-digits --grid method.beta=1:2", "a range needs a step, such as method.beta=1:2:0.1"),
        ("sweep bang-digit --grid method.beta=1,2", "did you mean 'bang-digits'"),
        ("sweep bang-digits", "either a grid"),
        ("sweep bang-digits --search 3 --over method.beta=1:2 --grid seed=1,2", "either a grid"),
        ("sweep bang-digits --search 3 --grid seed=1,2", "either a grid"),
        ("sweep bang-digits --grid seed=1,2 --maximise acuracy", "did you mean 'accuracy'"),
        ("sweep bang-digits --grid seed=1,2 --minimise success:FGS", "attack of the suite quick: 'FGS' is not known"),
        ("sweep bang-digits --grid seed=1,2 --threat Linf", "--threat"),
        ("sweep bang-digits --grid seed=1,2 --threat Linf:8", "--threat 'Linf:8'"),
        ("sweep bang-digits --grid seed=1,2 --contour seed", "--contour takes two settings"),
        ("sweep bang-digits --grid seed=1,2 --contour seed,sed", "did you mean 'seed'"),
        ("sweep bang-digits --grid seed=1,2 --storage postgresql://me:s3cret@127.0.0.1:1/d", "me:***@127.0.0.1"),
    ],
)
def test_wrong_use_is_one_sentence_and_costs_nothing(bessemer, tmp_path, line, said):
    code, out, err = bessemer(line)
    assert code == 2
    assert out == ""
    assert said in err
    assert re.fullmatch("bessemer: [^\n]+\n", err)
    assert "s3cret" not in err
    assert not list(tmp_path.rglob("trial-*"))


def test_help_names_every_objective_and_fits_eighty_columns(bessemer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = bessemer("sweep --help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    names = ("accuracy", "loss", "seconds", "robust", "survives:", "success:", "pass:", "linf:", "l2:", "median:")
    assert all(name in out for name in names)
