"""`bessemer evaluate` on models, weights and images of one's own, with every option; and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

from bessemer.arithmetic import flushed
from bessemer.cli import evaluate as command
from bessemer.cli import main
from bessemer.data import load
from bessemer.records import Evaluation

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

class Changed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()
        self.inner.load_state_dict(torch.load("w.pt", weights_only=True))

class WritesInput(Changed):
    def forward(self, x):
        return self.inner(x.mul_(0.5))

class Sometimes(Changed):
    def forward(self, x):
        return torch.where(x.flatten(1).mean(1, keepdim=True) > 0.32, torch.nan, self.inner(x))

class OnlyForwards(Changed):
    def forward(self, x):
        if torch.is_grad_enabled():
            raise KeyError("no gradients here")
        return self.inner(x)

class ManyOnly(Changed):
    def forward(self, x):
        if x.requires_grad and len(x) > 2:
            raise RuntimeError("first line\\nsecond line")
        return self.inner(x)

class HoldsALock(Changed):
    def __init__(self):
        super().__init__()
        import threading
        self.lock = threading.Lock()
    def forward(self, x):
        return self.inner(x)

class Integers(Changed):
    def forward(self, x):
        return self.inner((x * 4).long() / 4)

def scripted():
    changed = Changed()
    return torch.jit.trace(changed.inner, torch.rand(2, 1, 8, 8))
"""

# torch calls tracing deprecated, but users have traced models
TRACES = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    images, labels = load("digits").train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path, weights):
    """A folder with a module, its weights, and images that lie class by class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    Path("own_models.py").write_text(MODULE)
    torch.save(weights, "w.pt")
    save_file(weights, "w.safetensors")
    test = load("digits").test
    for place, (image, label) in enumerate(zip(test.images[:60].numpy(), test.labels[:60].tolist(), strict=True)):
        path = Path("images", f"число {label}", f"{place:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    with flushed():
        yield


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """Types `bessemer evaluate …`; returns exit code, standard output and standard error."""

    def typed(line):
        monkeypatch.setattr(sys, "argv", ["bessemer", "evaluate", *shlex.split(line)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        return code, out, err

    return typed


OWN = "own_models:build --weights w.pt --threat Linf:0.05"
DIGITS = f"{OWN} --data digits --samples 12 --batch-size 5"


def records(folder):
    return {path.name: Evaluation.read(path) for path in Path(folder, "records").glob("*.json")}


def found(evaluation):
    return {key: value for key, value in evaluation.to_json().items() if key != "provenance"}


def sentence(answer):
    """Exit code and the one sentence of a refusal; a progress bar may stand before it."""
    code, out, err = answer
    assert out == ""
    assert "Traceback" not in err
    assert len(re.findall("bessemer: ", err)) == 1
    return code, err[err.index("bessemer: ") :].removeprefix("bessemer: ").rstrip("\n")


# --- models, weights and images of one's own -------------------------------------------------------------------------


def test_a_model_file_and_an_image_folder_are_evaluated(evaluate):
    code, out, err = evaluate(f"{OWN} --data images")
    assert code == 0, err
    assert "own_models:build w.pt under quick at Linf:0.05, 60 images" in " ".join(out.split())
    ((name, evaluation),) = records("runs/own_models-build-w.pt").items()
    assert name == f"quick_Linf-0.05_{Path.cwd().name}-images_60.json"
    assert evaluation.classes[3] == "число 3"
    assert evaluation.clean_accuracy().value > 0.9


def test_the_first_images_of_a_folder_are_of_every_class(evaluate):
    assert evaluate(f"{OWN} --data images --samples 10 --json few.json")[0] == 0
    assert sorted(Evaluation.read("few.json").label.tolist()) == list(range(10))


def test_other_weights_do_not_overwrite_the_first(evaluate, weights):
    Path("other").mkdir()
    torch.save({name: 0.5 * value for name, value in weights.items()}, "other/w.pt")
    for file in ("w.pt", "w.safetensors", "other/w.pt"):
        assert evaluate(f"own_models:build --weights {file} --threat Linf:0.05 --data digits --samples 5")[0] == 0
    folders = {path.name for path in Path("runs").iterdir()}
    assert folders == {f"own_models-build-{file}" for file in ("w.pt", "w.safetensors", "other-w.pt")}


@TRACES
def test_a_scripted_model_is_judged_like_the_one_it_was_made_of(evaluate):
    assert evaluate("own_models:scripted --threat Linf:0.05 --data digits --samples 12 --json a.json")[0] == 0
    assert evaluate(f"{OWN} --data digits --samples 12 --json b.json")[0] == 0
    one, other = (Evaluation.read(path) for path in ("a.json", "b.json"))
    assert all((one.attack(rows.name)["prediction"] == rows["prediction"]).all() for rows in other.attacks)


@TRACES
@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("WritesInput", "", "writes into the images it is given"),
        ("Sometimes", "", "returns NaN for"),
        ("OnlyForwards", "", "fails where a gradient is asked for: KeyError: 'no gradients here'"),
        ("ManyOnly", "", "stops: RuntimeError: first line"),
        ("Integers", "", "have no gradient"),
        ("HoldsALock", "--fast", "needs a copy of the model, which cannot be made"),
        ("scripted", "--fast", "needs a copy of the model, which cannot be made"),
    ],
)
def test_a_model_that_cannot_be_judged_is_refused_in_a_sentence(evaluate, model, options, says):
    code, told = sentence(evaluate(f"own_models:{model} --threat Linf:0.05 --data digits --samples 12 {options}"))
    assert code == 1
    assert says in told
    assert "\n" not in told
    assert not list(Path("runs").rglob("quick*.json"))


@TRACES
def test_a_program_is_no_weights(evaluate):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)).save("program.pt")
    code, told = sentence(evaluate("own_models:build --weights program.pt --threat Linf:0.05 --data digits"))
    assert code == 1
    assert "program.pt is a TorchScript program" in told


# --- options ---------------------------------------------------------------------------------------------------------


def test_json_and_csv_hold_what_was_found(evaluate):
    assert evaluate(f"{DIGITS} --json new/deep/a.json --csv new/deep/a.csv")[0] == 0
    evaluation = Evaluation.read("new/deep/a.json")
    (kept,) = records("runs/own_models-build-w.pt").values()
    assert evaluation.to_json() == kept.to_json()
    assert Path("new/deep/a.csv").read_text() == evaluation.to_csv()


@pytest.mark.parametrize(("off_by", "code"), [(0, 0), (1, 3), (-1, 0)])
def test_the_bar_is_met_where_exactly_so_many_stand(evaluate, off_by, code):
    """29 of 100 are 28.999999999999996 % in floating point."""
    answer = Evaluation.read(written(evaluate, f"{OWN} --data digits --samples 20 --json a.json"))
    worst = answer.worst_case()
    answer = evaluate(f"{OWN} --data digits --samples 20 --fail-under {100 * worst.count / 20 + off_by}")
    assert answer[0] == code
    assert ("that --fail-under asks for" in answer[2]) == (code == 3)
    assert "worst case" in answer[1]


def test_29_of_100_are_not_under_29_percent():
    with pytest.raises(command.BelowError):
        command._require(standing(28), 29)
    command._require(standing(29), 29)


def standing(count):
    from bessemer.records import COLUMNS, AttackRows

    columns = {name: np.zeros(100, kind) for name, kind in COLUMNS.items()}
    columns["prediction"][count:] = 1
    zeros = np.zeros(100, np.int64)
    rows = AttackRows("a", "PGD()", "bounded", "Linf:0.1", columns)
    return Evaluation("m", "", "own", "Linf:0.1", 0, ["a", "b"], np.arange(100), zeros, zeros, [rows])


def written(evaluate, line):
    assert evaluate(line)[0] == 0
    return "a.json"


def test_a_bar_that_is_met_in_doubt_says_so(evaluate, weights):
    torch.save({name: 1000 * value if name.startswith("3") else value for name, value in weights.items()}, "big.pt")
    code, _, err = evaluate(
        "own_models:build --weights big.pt --threat Linf:0.05 --data digits --samples 40 --fail-under 1"
    )
    assert code == 0
    assert "the true figure may be lower" in err


def test_fast_and_8bit_answers_stand_beside_the_exact_one(evaluate):
    for options in ("", "--fast", "--eight-bit", "--fast --eight-bit"):
        assert evaluate(f"{DIGITS} {options}")[0] == 0
    kept = records("runs/own_models-build-w.pt")
    assert sorted(kept) == [
        "quick-8bit_Linf-0.05_digits_12.json",
        "quick-8bit_Linf-0.05_digits_12_fast.json",
        "quick_Linf-0.05_digits_12.json",
        "quick_Linf-0.05_digits_12_fast.json",
    ]
    assert all(("fast" in name) == kept[name].provenance["mode"].startswith("fast") for name in kept)


def test_8bit_images_are_whole_grey_levels_under_every_attack(evaluate):
    assert evaluate(f"{OWN} --data images --eight-bit --save-adversarial adv")[0] == 0
    images = np.load("adv/adversarial-000000.npz")["images"]
    assert np.abs(255 * images - np.round(255 * images)).max() < 1e-3
    (evaluation,) = records("runs/own_models-build-w.pt").values()
    assert all(rows.attack.startswith("EightBit(") for rows in evaluation.attacks)
    code, told = sentence(evaluate(f"{OWN} --data images --suite minimal --eight-bit"))
    assert code == 2
    assert "eight_bit works on attacks with a radius" in told


def test_saved_images_of_a_larger_evaluation_do_not_stay_behind(evaluate):
    assert evaluate(f"{DIGITS} --save-adversarial adv")[0] == 0
    Path("adv/mine.npz").write_bytes(b"mine")
    assert len(list(Path("adv").iterdir())) == 4
    assert evaluate(f"{OWN} --data digits --samples 4 --save-adversarial adv")[0] == 0
    assert {path.name for path in Path("adv").iterdir()} == {"adversarial-000000.npz", "mine.npz"}


def test_a_curve_over_the_steps_is_told_at_every_budget_with_its_interval(evaluate):
    code, out, _ = evaluate(f"{OWN} --data digits --suite pgd-curve --samples 4 --json a.json")
    assert code == 0
    curve = Evaluation.read("a.json").over_budgets()
    assert len(curve) == 9
    told = "; ".join(f"{count:,}: {share}" for count, share in curve.items())
    assert f"right after so many steps, {told}" in out


def test_a_budget_says_what_it_plans_and_keeps_to_it(evaluate):
    code, _, err = evaluate(f"{OWN} --data digits --budget 100s --samples 12 --json a.json")
    assert code == 0
    assert "12 of 12 images" in err
    assert len(Evaluation.read("a.json")) == 12


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--budget 0s", "is no time"),
        ("--budget nan", "is no time"),
        ("--budget 0.000001s", "more than the budget"),
        ("--threat Linf:8", "for grey levels write 8/255"),
        ("--threat L3:1", "did you mean 'L2'?"),
        ("--suite standrad", "did you mean 'standard'?"),
        ("--suite minimal --fail-under 20", "--fail-under needs attacks with a radius"),
        ("--json images", "--json: images is a folder"),
        ("--csv images", "--csv: images is a folder"),
        ("--save-adversarial w.pt", "--save-adversarial: w.pt is a file"),
        ("--data ./nowhere", "there is no folder ./nowhere"),
        ("--size 8", "'size' is not known"),
        ("--device cuda:99", "is not here"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused_before_anything_is_done(evaluate, options, says):
    code, told = sentence(evaluate(f"own_models:build --threat Linf:0.05 --data digits --samples 5 {options}"))
    assert code == 2
    assert says in told
    assert not list(Path().rglob("quick*.json"))


@pytest.mark.parametrize(
    "options", ["--fail-under 101", "--fail-under nan", "--samples 0", "--size 0", "--batch-size 0"]
)
def test_numbers_out_of_range_are_answered_with_the_usage(evaluate, options):
    code, out, err = evaluate(f"{OWN} --data digits {options}")
    assert (code, out) == (2, "")
    assert "Usage: " in err


# --- stopped, and gone on with ---------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_where_it_was(evaluate, monkeypatch):
    assert evaluate(f"{DIGITS} --out whole")[0] == 0
    original = command.evaluation_bar

    def interrupting(bars, name):
        show = original(bars, name)

        def stop(stage):
            show(stage)
            if stage.done > 5 and stage.attack == "PGD-20":
                raise KeyboardInterrupt

        return stop

    with monkeypatch.context() as patch:
        patch.setattr(command, "evaluation_bar", interrupting)
        code, told = sentence(evaluate(f"{DIGITS} --out stopped"))
    assert code == 130
    assert told == "interrupted; the same command goes on where it was"
    assert not records("stopped")
    (journal,) = Path("stopped/records").glob("*.partial")
    kept = {path: path.stat().st_mtime_ns for path in journal.glob("0*")}
    assert len(kept) > 5
    assert evaluate(f"{DIGITS} --out stopped")[0] == 0
    assert not journal.exists()
    (one,), (other,) = records("stopped").values(), records("whole").values()
    assert found(one) == found(other)


def test_two_evaluations_do_not_write_to_one_place(evaluate):
    journal = Path("busy/records/quick_Linf-0.05_digits_12.partial")
    journal.mkdir(parents=True)
    with FileLock(journal / ".lock"):
        code, told = sentence(evaluate(f"{DIGITS} --out busy"))
    assert code == 1
    assert "another process is at the same evaluation" in told
    assert evaluate(f"{DIGITS} --out busy")[0] == 0


def test_a_place_that_cannot_be_written_costs_no_figure(evaluate):
    Path("in_the_way").write_text("")
    code, out, err = evaluate(f"{DIGITS} --out in_the_way")
    assert code == 1
    assert "worst case" in out
    assert "what is found is not kept on the way" in err
    assert "cannot be written" in err


def test_two_processes_under_torchrun_leave_the_record_of_one(evaluate):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "bessemer",
    ]
    done = subprocess.run(
        [*torchrun, "evaluate", *shlex.split(DIGITS), "--out", "two"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("worst case") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert evaluate(f"{DIGITS} --out one")[0] == 0
    finally:
        torch.set_num_threads(threads)
    (one,), (two,) = records("one").values(), records("two").values()
    assert found(one) == found(two)
    assert (one.provenance["processes"], two.provenance["processes"]) == (1, 2)
    assert [path.suffix for path in Path("two/records").iterdir()] == [".json"]
    assert json.loads(next(Path("two/records").iterdir()).read_text())["record"]["seed"] == 0


def test_an_environment_that_only_looks_like_torchrun_is_one_process(evaluate, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert evaluate(f"{DIGITS} --json a.json")[0] == 0
    assert Evaluation.read("a.json").provenance["processes"] == 1
