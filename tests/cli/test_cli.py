"""The command line, as a new user types it: what it does, what it refuses, and with which exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from bessemer.arithmetic import flushed
from bessemer.cli import demo, main
from bessemer.cli import evaluate as evaluate_command
from bessemer.cli import train as train_command
from bessemer.cli.evaluate import images_for
from bessemer.records import RunRecord
from bessemer.training import recipes

COMMANDS = [
    "demo",
    "train",
    "evaluate",
    "purify",
    "sweep",
    "report",
    "reproduce",
    "list",
    "data",
    "data list",
    "data check",
    "data get",
]
ITERATIONS = "training.iterations=20"


@pytest.fixture(autouse=True)
def _interruptible():
    """A shell that starts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """An empty folder to work in, no data but the embedded, and a terminal that is wide enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BESSEMER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    with flushed():  # the command line flushes denormals for the whole process: not for the tests after these
        yield


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 iterations; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch, flushed():
        patch.setattr(sys, "argv", ["bessemer", "train", "digits", "--set", ITERATIONS, "--out", str(folder)])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, as `run` in the working folder."""
    shutil.copytree(trained, tmp_path / "run")
    return Path("run")


def refusal(answer):
    """Exit code and sentence of a command that did nothing; no traceback, no second line, nothing printed."""
    code, out, err = answer
    assert out == ""
    assert re.fullmatch("bessemer: [^\n]+\n", err)
    return code, err.removeprefix("bessemer: ").rstrip()


def weights(folder):
    newest = sorted((Path(folder) / "checkpoints").glob("step-*"))[-1]
    return {name: tensor for name, tensor in load_file(newest).items() if name.startswith("weights/")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_eighty_columns(bessemer, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = bessemer(f"{command} --help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "report", "reproduce", "list", "data"])
def test_help_teaches_by_examples_that_can_be_typed(bessemer, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = bessemer(f"{command} -h")
    examples = [line.split() for line in out.splitlines() if line.startswith(f"   bessemer {command}")]
    assert examples
    for words in examples:
        options = {word for word in words if word.startswith("--")}
        leaf = " ".join(words[1:3]) if command == "data" else command
        _, help_, _ = bessemer(f"{leaf} -h")
        assert all(option in help_ for option in options)
        if command == "train":
            assert words[2] in recipes() or words[2].endswith(".toml")


def test_no_command_shows_what_there_is(bessemer):
    code, out, _ = bessemer("")
    assert code == 2
    assert all(command in out for command in ("demo", "train", "evaluate", "report", "list", "data"))


@pytest.mark.parametrize("width", ["40", "80"])
def test_no_figure_is_cut_off_in_a_narrow_terminal(bessemer, run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    code, out, _ = bessemer(f"evaluate {run} --suite bang --samples 20")
    assert code == 0
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= int(width)


# --- what each command does -----------------------------------------------------------------------------------------


def test_list_names_everything_or_one_kind(bessemer):
    code, every, _ = bessemer("list")
    assert code == 0
    for what, some in {"recipes": "bang-digits", "models": "lenet", "methods": "bang", "attacks": "pgd"}.items():
        code, out, _ = bessemer(f"list {what}")
        assert code == 0
        assert some in [line.split()[0] for line in out.splitlines() if line]
        assert what in [line.rstrip() for line in every.splitlines()]
        assert some in every


def test_data_check_of_what_is_embedded(bessemer):
    code, out, _ = bessemer("data check digits")
    assert code == 0
    assert "as published" in out


def test_train_evaluate_and_report_follow_one_another(bessemer):
    code, out, _ = bessemer(f"train digits --set {ITERATIONS} --set seed=3 --out 'a run'")
    assert code == 0
    assert out == "Trained into a run. Next: bessemer evaluate 'a run'\n"
    assert RunRecord.read("a run").recipe["seed"] == 3

    code, out, _ = bessemer("evaluate 'a run' --samples 20 --threat Linf:25/255")
    assert code == 0
    assert "a run under quick at Linf:25/255, 20 images" in out
    rows = {line.split("  ")[0] for line in out.splitlines()}
    assert {"clean", "FGSM", "PGD-20", "worst case"} <= rows
    assert out.endswith("Next: bessemer report 'a run'\n")
    (found,) = RunRecord.read("a run").evaluations
    assert (len(found), found.threat, found.suite) == (20, "Linf:25/255", "quick")

    code, out, _ = bessemer("report 'a run'")
    assert (code, out) == (0, "Wrote a run/report.html\n")
    assert "worst case" in Path("a run/report.html").read_text().lower()


def test_what_the_images_or_the_network_do_not_have_is_refused(bessemer, run):
    code, _, err = bessemer(f"evaluate {run} --size 16")
    assert code == 2
    assert "'size' is not known" in err
    for branch in ("all", "clean"):
        code, _, err = bessemer(f"evaluate {run} --branch {branch}")
        assert code == 2
        assert "no mixture norm, and so no branches; leave out --branch" in " ".join(err.split())


def test_a_seed_may_be_any_whole_number(bessemer):
    code, _, err = bessemer(f"train digits --set {ITERATIONS} --set seed={2**64 + 1} --out large")
    assert code == 0, err


def test_a_run_without_evaluations_has_a_report_too(bessemer, run):
    code, out, _ = bessemer(f"report {run} {run} --out both.html")
    assert (code, out) == (0, "Wrote both.html\n")
    assert Path("both.html").stat().st_size > 10_000


def test_more_samples_than_there_are_are_all(bessemer, run):
    code, out, _ = bessemer(f"evaluate {run} --suite bang --samples 99999999")
    assert code == 0
    assert "run under bang, 400 images" in out


def test_a_run_that_starts_from_another_tells_how_far_it_left_it(bessemer, run):
    changes = f"--set init=run --set {ITERATIONS} --set training.validate_every=10"
    assert bessemer(f"train bang-digits {changes} --out robust")[0] == 0
    for folder, measures, iterations in (
        (run, {"theta_initial"}, [0, 20]),
        (Path("robust"), {"theta_initial", "theta_start", "outweighs_start"}, [0, 10, 20]),
    ):
        noted = [line for line in RunRecord.read(folder).metrics if "theta_initial/conv1" in line]
        assert [line["iteration"] for line in noted] == iterations
        moved = {key.partition("/")[0] for key in noted[0] if "theta" in key or "outweighs" in key}
        assert moved == measures
        assert "correct_share/conv1" in noted[0]
    assert bessemer("report robust --out r.html")[0] == 0
    assert "How the neurons move away from the clean network" in Path("r.html").read_text(encoding="utf-8")


def test_folder_names_are_no_markup(bessemer, trained):
    shutil.copytree(trained, "[red]x")
    code, out, _ = bessemer("evaluate [red]x --samples 1")
    assert code == 0
    assert "[red]x under quick at Linf:0.1, 1 image\n" in re.sub(" +\n", "\n", out)


# --- Ctrl-C, and going on -------------------------------------------------------------------------------------------


def interrupting(monkeypatch, command, bar, when, times=1):
    """Ctrl-C as the progress bar of a command reaches a place."""

    def pressed(bars, name):
        def show(stand):
            if when(stand):
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        return show

    monkeypatch.setattr(command, bar, pressed)


def test_ctrl_c_saves_and_says_how_to_go_on_and_that_ends_in_the_same_weights(bessemer, trained, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, train_command, "training_bar", lambda moment: moment.iteration == 7)
        code, sentence = refusal(bessemer(f"train digits --set {ITERATIONS} --out 'my run' --data-dir ."))
    assert code == 130
    assert sentence.startswith("stopped and saved; go on with: bessemer train digits ")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [path.name for path in Path("my run/checkpoints").glob("step-*")] == ["step-00000008.safetensors"]

    again = sentence.partition("go on with: bessemer ")[2]
    assert shlex.split(again)[-5:] == ["--out", "my run", "--data-dir", ".", "--resume"]
    code, out, _ = bessemer(again)
    assert code == 0
    assert "Trained into my run" in out
    assert same(weights("my run"), weights(trained))


def test_ctrl_c_at_the_last_step_is_no_interruption(bessemer, monkeypatch):
    interrupting(monkeypatch, train_command, "training_bar", lambda moment: moment.iteration == 5)
    code, out, _ = bessemer("train digits --set training.iterations=5 --out run")
    assert code == 0
    assert "Trained into run" in out


def test_a_second_ctrl_c_ends_at_once_and_loses_nothing_that_was_saved(bessemer, trained, monkeypatch):
    settings = f"--set {ITERATIONS} --out run"
    with monkeypatch.context() as patch:
        interrupting(patch, train_command, "training_bar", lambda moment: moment.iteration == 7, times=2)
        code, sentence = refusal(bessemer(f"train digits {settings}"))
    assert code == 130
    assert sentence == "interrupted; what was written before is whole"
    assert bessemer(f"train digits {settings} --resume")[0] == 0
    assert same(weights("run"), weights(trained))


def test_ctrl_c_during_an_evaluation_leaves_no_record(bessemer, run, monkeypatch):
    interrupting(monkeypatch, evaluate_command, "evaluation_bar", lambda stage: stage.attack == "PGD-20")
    code, sentence = refusal(bessemer(f"evaluate {run} --samples 20"))
    assert code == 130
    assert sentence.startswith("interrupted")
    assert not list(run.glob("records/*.json"))


def test_resuming_what_is_finished_changes_nothing(bessemer, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = bessemer(f"train digits --set {ITERATIONS} --out {run} --resume")
    assert (code, err) == (0, "")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_demo(monkeypatch, tmp_path):
    """The demo with three recipes of 20 iterations, judged on 20 images; returns which evaluations were made."""
    named = {}
    for name, recipe in demo.RECIPES.items():
        text = recipes()[recipe].read_text()
        text = re.sub(r"iterations = \d+", "iterations = 20", text)
        (tmp_path / f"{recipe}.toml").write_text(re.sub(r"steps = \d+", "steps = 1", text))
        named[name] = str(tmp_path / f"{recipe}.toml")
    made = []
    evaluated = demo.evaluated

    def few(model):
        dataset = images_for(model)
        return replace(dataset, test=dataset.test.first(20))

    def counted(model, dataset, suite, threat, name):
        made.append((name, suite))
        return evaluated(model, dataset, suite, threat, name)

    monkeypatch.setattr(demo, "RECIPES", named)
    monkeypatch.setattr(demo, "images_for", few)
    monkeypatch.setattr(demo, "evaluated", counted)
    return made


def test_the_demo_leaves_a_page_and_a_second_call_does_only_what_is_missing(bessemer, tiny_demo):
    code, out, _ = bessemer("demo --out show")
    assert code == 0
    assert out.endswith("Open show/report.html\n")
    assert all(name in Path("show/report.html").read_text() for name in demo.RECIPES)
    assert tiny_demo == [(run, suite) for run in demo.RECIPES for suite in demo.SUITES]

    tiny_demo.clear()
    (missing,) = Path("show/bang/records").glob("bang*")
    missing.unlink()
    shutil.rmtree("show/adversarial")
    kept = {path: path.stat().st_mtime_ns for path in Path("show").rglob("*.safetensors")}
    assert len(kept) == 6
    assert bessemer("demo --out show")[0] == 0
    assert tiny_demo == [("bang", "bang"), ("adversarial", "quick"), ("adversarial", "bang")]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_interrupted_demo_says_how_to_go_on(bessemer, tiny_demo, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, train_command, "training_bar", lambda moment: moment.iteration == 7)
        code, sentence = refusal(bessemer("demo --out 'my demo'"))
    assert code == 130
    assert sentence == "stopped and saved; go on with: bessemer demo --out 'my demo'"
    assert bessemer("demo --out 'my demo'")[0] == 0


# --- wrong use: 2, one sentence, nothing begun --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train digts", "did you mean 'digits'?"),
        ("train nowhere.toml", "nowhere.toml cannot be read"),
        ("train ''", "allowed: adversarial-alexnet-cifar"),
        ("train digits --set training.iteration=3", "did you mean 'iterations'?"),
        ("train digits --set trainin.iterations=3", "did you mean 'training'?"),
        ("train digits --set method.name=bagn", "did you mean 'bang'?"),
        ("train digits --set training.iterations=three", "training.iterations: input should be a valid integer"),
        ("train digits --set training.iterations=1.5", "found 1.5"),
        ("train digits --set training.iterations=0", "at least 1, found 0"),
        ("train digits --set training.shuffle=yes", "valid boolean, found 'yes'"),
        ("train digits --set training.iterations", "--set takes KEY=VALUE"),
        ("train digits --set =3", "--set takes KEY=VALUE"),
        ("train digits --set optimizer.lr=fast", "optimizer.lr: 'fast' is not a number"),
        ("train digits --set optimizer.lr=nan", "lr should be a finite number and not negative, found nan"),
        ("train digits --set model=3", "model should be a section"),
        ("train digits --set model.name=lenet", "change model.name or data.name"),
        ("train digits --set model.classes=7", "set model.classes = 10"),
        ("train digits --set model.dropout=1.5", "dropout should be a share"),
        ("train digits --set training.batch_size=9999", "does not fit a training set of 1197"),
        ("train digits --set evaluation.suite=quik", "evaluation.suite: 'quik' is not known; did you mean 'quick'?"),
        ("train digits --set evaluation.threat=Linf:8", "for grey levels write 8/255"),
        ("train adversarial-digits --set method.attack.threat=L7:1", "did you mean 'L2'?"),
        ("train lenet-mnist --data-dir nowhere", "there is no folder nowhere"),
        ("train digits --device nonsense", "device: 'nonsense' is not here"),
        ("train digits --device cuda:x", "device: 'cuda:x' is not here"),
        ("train digits --device cuda:99", "device: 'cuda:99' is not here"),
        ("evaluate nothing", "nothing is no run"),
        ("report nothing", "nothing is no run"),
        ("report .", "no run"),
        ("list receipes", "did you mean 'recipes'?"),
        ("reproduce bang-table3", "did you mean 'bang-table"),
        ("data get minst", "did you mean 'mnist'?"),
    ],
)
def test_wrong_use_is_answered_with_one_sentence(bessemer, tmp_path, line, says):
    code, sentence = refusal(bessemer(f"{line} --out out" if line.startswith("train") else line))
    assert code == 2
    assert says in sentence
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--suite quik", "did you mean 'quick'?"),
        ("--threat Linf:8", "for grey levels write 8/255"),
        ("--threat L7:1", "did you mean 'L2'?"),
        ("--threat Linf:", "--threat 'Linf:': '' is not a number"),
        ("--threat Linf", "has no radius"),
        ("--threat L2:-1", "from 0 upwards, not -1"),
        ("--threat L2:1e999", "--threat 'L2:1e999'"),
        ("--device cuda:99", "device: 'cuda:99' is not here"),
        ("--data nope", "data set: 'nope' is not known"),
        ("--data folder", "needs the folder that holds"),
        ("--data digits:here", "'path' is not known"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(bessemer, run, options, says):
    code, sentence = refusal(bessemer(f"evaluate {run} {options}"))
    assert code == 2
    assert says in sentence
    assert not list(run.glob("records/*"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train", "Missing argument"),
        ("train digits more", "unexpected extra argument"),
        ("train digits --frobnicate", "No such option: --frobnicate"),
        ("trian digits", "Did you mean 'train'?"),
        ("evaluate run --samples 0", "greater than or equal to 1"),
        ("evaluate run --samples -1", "greater than or equal to 1"),
        ("evaluate run --samples many", "valid integer"),
        ("data nope", "No such command 'nope'"),
    ],
)
def test_a_command_line_that_is_none_is_answered_with_its_usage(bessemer, line, says):
    code, out, err = bessemer(line)
    assert (code, out) == (2, "")
    assert says in err
    assert "Usage: " in err


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"seed = [\n", "is no TOML"), (b'about = "\xff"', "is no TOML"), (b"", "the section [data] is missing")],
)
def test_a_recipe_that_is_none_is_refused(bessemer, content, says):
    Path("own.toml").write_bytes(content)
    code, sentence = refusal(bessemer("train own.toml"))
    assert code == 2
    assert sentence.startswith(("own.toml", "recipe own"))
    assert says in sentence
    assert not Path("runs").exists()


def test_a_run_is_not_overwritten_nor_mixed_with_another_recipe(bessemer, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, sentence = refusal(bessemer(f"train digits --set {ITERATIONS} --out {run}"))
    assert code == 2
    assert "--resume" in sentence
    code, sentence = refusal(bessemer(f"train digits --set training.iterations=30 --out {run} --resume"))
    assert code == 2
    assert "training.iterations was 20 and is now 30" in sentence
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_data_of_another_shape_is_refused(bessemer, run, idx_files):
    idx_files()
    code, sentence = refusal(bessemer(f"evaluate {run} --data mnist --data-dir ."))
    assert code == 2
    assert "images of shape (1, 8, 8), but mnist has (1, 28, 28)" in sentence


def test_your_own_images_must_have_as_many_classes_as_the_model(bessemer, run):
    pillow = pytest.importorskip("PIL.Image")
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            Path("mine", part, name).mkdir(parents=True)
            for number in range(2):
                pillow.new("L", (8, 8), 9 * number).save(Path("mine", part, name, f"{number}.png"))
    code, sentence = refusal(bessemer(f"evaluate {run} --data folder:mine"))
    assert code == 2
    assert "tells 10 classes apart, but mine has 2" in sentence


# --- failures: 1, one sentence, nothing lost ----------------------------------------------------------------------


@pytest.fixture
def idx_files(tmp_path):
    """Writes MNIST's four files into the working folder: right headers, blank pixels."""

    def write():
        (tmp_path / "mnist").mkdir(exist_ok=True)
        for part, count in (("train", 60_000), ("t10k", 10_000)):
            header = (2051).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
            (tmp_path / f"mnist/{part}-images-idx3-ubyte").write_bytes(header + bytes(count * 784))
            header = (2049).to_bytes(4, "big") + count.to_bytes(4, "big")
            (tmp_path / f"mnist/{part}-labels-idx1-ubyte").write_bytes(header + bytes(count))
        return tmp_path / "mnist"

    return write


def swap(one, other):
    one.rename("aside")
    other.rename(one)
    Path("aside").rename(other)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: os.truncate(f / "train-images-idx3-ubyte", 5_000_000), "is damaged"),
        (lambda f: os.truncate(f / "train-labels-idx1-ubyte", 0), "is damaged"),
        (lambda f: swap(f / "train-images-idx3-ubyte", f / "t10k-images-idx3-ubyte"), "training and test files are"),
        (lambda f: swap(f / "train-images-idx3-ubyte", f / "train-labels-idx1-ubyte"), "two files are swapped"),
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "lacks t10k-labels-idx1-ubyte"),
    ],
)
def test_cut_off_swapped_and_missing_data_files_are_told_apart(bessemer, idx_files, harm, says):
    harm(idx_files())
    for line in ("train lenet-mnist --out out --data-dir .", "data check mnist --data-dir ."):
        code, sentence = refusal(bessemer(line))
        assert code == 1
        assert sentence.startswith("mnist: ")
        assert says in sentence
    assert not Path("out/recipe.toml").exists()


def test_data_that_is_not_there_is_told_with_where_to_put_it(bessemer):
    code, sentence = refusal(bessemer("train lenet-mnist --out out"))
    assert code == 1
    assert "`bessemer data get mnist` downloads it, or put" in sentence


def test_a_training_that_diverges_says_what_to_change(bessemer):
    code, _, err = bessemer("train digits --set optimizer.lr=1e30 --set training.iterations=50 --out out")
    assert code == 1
    assert "the loss is nan at iteration 50 and so is conv1.weight; lower optimizer.lr" in err
    assert err.count("bessemer: ") == 1


@pytest.mark.parametrize("harm", [lambda raw: raw[:1000], lambda raw: b"", lambda raw: raw[:-9] + b"?" + raw[-8:]])
def test_a_damaged_checkpoint_is_refused_and_its_deletion_mends_the_run(bessemer, run, trained, harm):
    (path,) = run.glob("checkpoints/step-*")
    path.write_bytes(harm(path.read_bytes()))
    resume = f"train digits --set {ITERATIONS} --out {run} --resume"
    for line in (f"evaluate {run}", resume):
        code, sentence = refusal(bessemer(line))
        assert code == 1
        assert sentence.startswith(f"{path} is damaged")
    path.unlink()
    assert bessemer(resume)[0] == 0
    assert same(weights(run), weights(trained))


def test_another_models_checkpoint_is_refused(bessemer, run):
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace('"digits-net"', '"lenet"'))
    code, sentence = refusal(bessemer(f"evaluate {run}"))
    assert code == 1
    assert "the checkpoint holds a digits-net, but the recipe asks for a lenet" in sentence


def test_a_damaged_record_is_refused_and_the_page_before_stays(bessemer, run):
    assert bessemer(f"evaluate {run} --samples 5")[0] == 0
    assert bessemer(f"report {run}")[0] == 0
    page = (run / "report.html").read_bytes()
    (record,) = run.glob("records/*.json")
    for harm in (lambda raw: raw[:300], lambda raw: raw.replace(b'"quick"', b'"quack"')):
        whole = record.read_bytes()
        record.write_bytes(harm(whole))
        code, sentence = refusal(bessemer(f"report {run}"))
        assert code == 1
        assert sentence.startswith(f"{record} is damaged")
        assert (run / "report.html").read_bytes() == page
        record.write_bytes(whole)


def test_a_run_in_use_is_refused(bessemer, run):
    with FileLock(run / ".lock"):
        code, sentence = refusal(bessemer(f"train digits --set {ITERATIONS} --out {run} --resume"))
    assert code == 1
    assert "run is in use by another process" in sentence


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_refused(bessemer, run, out):
    Path("file").write_text("mine")
    for line in (f"train digits --out {out}", f"demo --out {out}", f"report {run} --out file/page.html"):
        code, sentence = refusal(bessemer(line))
        assert code == 1
        assert sentence.startswith("file")
    assert Path("file").read_text() == "mine"


def test_a_page_cannot_be_a_folder(bessemer, run):
    code, sentence = refusal(bessemer(f"report {run} --out ."))
    assert (code, sentence) == (2, ". is a folder; name the file to write, such as report.html")


def full_disk(monkeypatch, after):
    """No space is left after so many files."""
    flush, room = os.fsync, [None] * after

    def fsync(handle):
        if not room and os.readlink(f"/proc/self/fd/{handle}").rpartition("/")[2].startswith("."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if room:
            room.pop()
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is written is read from /proc")
def test_a_full_disk_loses_nothing_and_training_goes_on_when_there_is_space(bessemer, trained, monkeypatch):
    settings = f"--set {ITERATIONS} --set training.checkpoint_every=5 --out run"
    with monkeypatch.context() as patch:
        full_disk(patch, after=7)
        code, out, err = bessemer(f"train digits {settings}")
    assert (code, out) == (1, "")
    assert re.search(r"no space left to write run/checkpoints/step-000000\d\d.* --resume", err)
    assert not [path for path in Path("run").rglob(".*") if path.name != ".lock"]  # no half-written file
    assert list(Path("run/checkpoints").glob("step-*"))
    assert bessemer(f"train digits {settings} --resume")[0] == 0
    assert same(weights("run"), weights(trained))


def test_what_an_evaluation_found_is_shown_even_if_it_cannot_be_kept(bessemer, run):
    (run / "records").write_text("in the way")
    code, out, err = bessemer(f"evaluate {run} --samples 5")
    assert code == 1
    assert "worst case" in out
    assert "cannot be written" in err


def test_a_file_in_an_unexpected_place_is_no_traceback(bessemer, run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    shutil.rmtree(run / "checkpoints")
    code, sentence = refusal(bessemer(f"train digits --set {ITERATIONS} --out {run} --resume"))
    assert code == 1
    assert "metrics.jsonl" in sentence


# --- standard output that goes away ---------------------------------------------------------------------------------


def test_a_reader_that_leaves_early_is_no_error_to_talk_about():
    command = [sys.executable, "-c", "from bessemer.cli import main; main()", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_standard_output_that_takes_nothing_is_told(bessemer, monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = bessemer("list")
    assert code == 1
    assert err == "bessemer: standard output: No space left on device\n"
