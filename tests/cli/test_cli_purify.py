"""`bessemer purify` as it is typed: runs, weights in files, networks by their address; what it writes and refuses."""

import re
import shlex
import sys

import pytest
import torch
from safetensors.torch import save_file

from bessemer.arithmetic import flushed
from bessemer.cli import main
from bessemer.records.purification import PURIFICATIONS, Purification
from bessemer.training import Recipe, train

TINY = ["training.iterations=3", "training.validate_every=3", "training.checkpoint_every=3"]
NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

def wider():
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 10))

ready = build()
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    changes = {"clean": [], "robust": [f"init={folder / 'clean'}"], "other": ["seed=1"]}
    for name, change in changes.items():
        train(Recipe.named("digits", [*TINY, *change]), folder / name)
    return folder


@pytest.fixture
def bessemer(monkeypatch, capsys, tmp_path):
    """Types a command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def typed(line):
        monkeypatch.setattr(sys, "argv", ["bessemer", *shlex.split(line)])
        code = 0
        with flushed():
            try:
                main()
            except SystemExit as left:
                code = left.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return typed


def test_two_runs_leave_a_table_a_record_and_a_page(bessemer, kept, tmp_path):
    line = f"purify {kept / 'clean'} {kept / 'robust'} --independent {kept / 'other'} --json {tmp_path / 'a.json'}"
    code, out, _ = bessemer(line)
    assert code == 0
    (path,) = (kept / "robust" / PURIFICATIONS).glob("*.json")
    record = Purification.read(path)
    assert record.relation == "continued"
    assert Purification.read(tmp_path / "a.json").to_json() == record.to_json()
    for row in record.summary():
        line = next(line for line in out.splitlines() if line.startswith(row["layer"]))
        assert re.findall(r"[\d.]+", line.removeprefix(row["layer"]))[:4] == [
            str(row["neurons"]), *(f"{row[key]:.3f}" for key in ("initial_clean", "initial_robust", "clean_robust")),
        ]  # fmt: skip
    assert f"Wrote {kept / 'robust' / 'report.html'}" in out
    assert "clean → robust" in (kept / "robust" / "report.html").read_text(encoding="utf-8")


def test_an_unrelated_pair_is_labelled_and_told_what_to_do(bessemer, kept):
    code, out, _ = bessemer(f"purify {kept / 'clean'} {kept / 'other'} --out here")
    assert code == 0
    assert "note: unrelated: the robust run did not start from the clean one (their seeds are 0 and 1)" in out
    assert f"--set init={kept / 'clean'}" in out


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Weights of a network of one's own, in two formats, and the module that builds it."""
    (tmp_path / "own_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    import own_network

    clean = own_network.build()
    robust = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in clean.state_dict().items()}
    torch.save(clean.state_dict(), tmp_path / "clean.pt")
    save_file(robust, tmp_path / "robust.safetensors")
    return tmp_path


@pytest.mark.parametrize("address", ["own_network:build", "own_network:ready"])
def test_files_of_weights_are_read_into_the_network_they_belong_to(bessemer, files, address):
    code, _, _ = bessemer(f"purify clean.pt robust.safetensors --model {address} --initial clean.pt")
    assert code == 0
    (path,) = (files / "runs" / "robust.safetensors" / PURIFICATIONS).glob("*.json")
    record = Purification.read(path)
    assert (record.clean, record.robust) == ("clean", "robust")
    assert record.column("initial_clean").min() > 0.999999
    assert record.column("clean_robust").max() < 0.999999


def test_networks_are_named_by_their_address(bessemer, files):
    code, out, _ = bessemer("purify own_network:build own_network:ready --out here")
    assert code == 0
    assert "unrelated, by the weights" in out
    assert (files / "here" / "report.html").is_file()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("purify clean.pt robust.safetensors", "say whose they are with --model module:function"),
        (
            "purify own_network:build own_network:wider",
            "the weight of 0 has shape (4, 1, 3, 3) in own_network:build and",
        ),
        ("purify clean.pt clean.pt --model own_network:build", "have the same weights, so there is nothing to compare"),
        ("purify clean.pt gone.pt --model own_network:build", "gone.pt is not there"),
        ("purify nothing nothing", "nothing is no run: it has no recipe.toml"),
        ("purify clean.pt robust.safetensors --model own_network:build --json .", "--json: . is a folder"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(bessemer, files, line, says):
    code, _, err = bessemer(line)
    assert code in (1, 2)
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_help_teaches_by_examples_and_fits_eighty_columns(bessemer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = bessemer("purify --help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "bessemer purify runs/clean runs/robust" in out


@pytest.mark.parametrize("width", ["60", "80"])
def test_no_figure_is_cut_off_in_a_narrow_terminal(bessemer, kept, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    code, out, _ = bessemer(f"purify {kept / 'clean'} {kept / 'robust'} --independent {kept / 'other'} --out here")
    assert code == 0
    assert "…" not in out.partition("Medians")[0]
