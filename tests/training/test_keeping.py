"""What a run keeps besides its last weights: their moving average, and those that validation liked best."""

import json

import pytest
import torch

from bessemer.attacks import PGD
from bessemer.data import load as load_data
from bessemer.errors import DataError, DivergedError, OutOfMemoryError, ProcessError, UsageError
from bessemer.threat import Linf
from bessemer.training import Checkpoint, Recipe, load, train
from bessemer.training.checkpoint import newest, step_name
from bessemer.training.update import Update

SMALL = ["training.iterations=12", "training.checkpoint_every=4", "training.log_every=2", "training.validate_every=4"]
ATTACKED = ['validation.attack={name="pgd", threat="Linf:0.1", steps=3}', "validation.samples=40"]


def recipe(*changes, name="digits"):
    return Recipe.named(name, [*SMALL, *changes])


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupted(recipe, folder, at):
    train(recipe, folder, stop=lambda: (folder / "checkpoints" / step_name(at)).exists())
    assert load(folder, checkpoint="last").iteration < recipe.training.iterations
    train(recipe, folder, resume=True)


def test_the_average_is_the_average_of_the_weights_of_every_iteration(tmp_path):
    train(recipe("training.average=0.6", "training.keep_every=1"), tmp_path)
    checkpoints = [Checkpoint.read(tmp_path / "checkpoints" / step_name(done)) for done in range(1, 13)]
    expected = {
        name: tensor.double()
        for name, tensor in Checkpoint.read(tmp_path / "checkpoints/initial.safetensors").weights.items()
    }
    for done, checkpoint in enumerate(checkpoints, 1):
        decay = min(0.6, (1 + done) / (10 + done))
        expected = {name: decay * old + (1 - decay) * checkpoint.weights[name] for name, old in expected.items()}
    model = load(tmp_path)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(model.state_dict()["ip2.weight"], checkpoints[-1].weights["ip2.weight"])
    # and it is what was validated
    validation = load_data("digits").validation
    images, labels = validation.at(slice(None))
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).double().mean().item()
    assert [line["validation_accuracy"] for line in lines(tmp_path) if "validation_accuracy" in line][-1] == right


def test_the_best_is_what_withstood_most_on_validation_images(tmp_path):
    plan = recipe(*ATTACKED, "training.keep_every=4", "optimizer.lr=0.3")
    train(plan, tmp_path)
    images, labels = load_data("digits").validation.at(slice(0, 40))
    attack, standing = PGD(Linf(0.1), steps=3), {}
    for line in lines(tmp_path):
        if "validation_robust_accuracy" not in line:
            continue
        model = load(tmp_path, checkpoint="last")
        checkpoint = Checkpoint.read(tmp_path / "checkpoints" / step_name(line["iteration"]))
        checkpoint.restore_weights(model)
        with torch.no_grad():
            clean = model(images).argmax(1) == labels
            fallen = model(attack(model, images, labels, seed=plan.seed)).argmax(1) != labels
        standing[line["iteration"]] = (clean & ~fallen).double().mean().item()
        assert line["validation_robust_accuracy"] == pytest.approx(standing[line["iteration"]], abs=1e-6)
    assert sorted(standing) == [4, 8, 12]
    best = load(tmp_path, checkpoint="best")
    assert best.iteration == max(standing, key=lambda done: (standing[done], -done))
    assert load(tmp_path).iteration == 12
    assert not Checkpoint.read(tmp_path / "checkpoints/best.safetensors").optimizer["state"]


def test_the_recipe_says_which_checkpoint_is_judged(tmp_path):
    plan = recipe("evaluation.checkpoint=best", "schedule={name='step', at=[5], factor=1000.0}", "optimizer.lr=0.01")
    train(plan, tmp_path)
    assert load(tmp_path).iteration == load(tmp_path, checkpoint="best").iteration
    with pytest.raises(UsageError, match=r"checkpoint: 'first' is not known.*best, last"):
        load(tmp_path, checkpoint="first")
    with pytest.raises(UsageError, match="no branches"):
        load(tmp_path, branch="clean")
    (tmp_path / "checkpoints/best.safetensors").unlink()
    with pytest.raises(UsageError, match="no best checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        ["training.average=0.9", *ATTACKED],
        ["training.precision=float16"],
        ["training.precision=bfloat16", "training.accumulation=2"],
    ],
    ids=["average and best", "float16", "bfloat16 in parts"],
)
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, changes):
    interrupted(recipe(*changes), tmp_path / "stopped", at=4)
    train(recipe(*changes), tmp_path / "whole")
    one, other = (Checkpoint.read(newest(tmp_path / name)) for name in ("stopped", "whole"))
    for kind in ("weights", "average"):
        assert getattr(one, kind).keys() == getattr(other, kind).keys()
        assert all(torch.equal(tensor, getattr(other, kind)[name]) for name, tensor in getattr(one, kind).items())
    assert one.scaler == other.scaler
    one, other = (Checkpoint.read(tmp_path / name / "checkpoints/best.safetensors") for name in ("stopped", "whole"))
    assert one.iteration == other.iteration
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint_and_says_where(tmp_path):
    with pytest.raises(DivergedError, match=r"at iteration \d+ and so is conv1.weight; lower optimizer.lr"):
        train(recipe("optimizer.lr=1e30", "training.log_every=1"), tmp_path)
    model = load(tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("problem", "kind", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            OutOfMemoryError,
            "out of memory with 64 images at a time; take training.accumulation = 2 .*training.precision",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            OutOfMemoryError,
            "out of memory with 64 images at a time",
        ),
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
            ProcessError,
            "another process of this job ended, and says why; .*--resume",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            DataError,
            "a process that reads images ended: DataLoader worker .*fewer data.workers",
        ),
        (RuntimeError("something else"), RuntimeError, "^something else$"),
    ],
    ids=["GPU memory", "memory", "another process", "a reader", "anything else"],
)
def test_what_the_machine_reports_is_said_with_what_to_do(tmp_path, monkeypatch, problem, kind, said):
    def failing(update, batch):
        raise problem

    monkeypatch.setattr(Update, "__call__", failing)
    with pytest.raises(kind, match=said):
        train(recipe(), tmp_path)
    monkeypatch.undo()
    train(recipe(), tmp_path, resume=True)
    assert load(tmp_path).iteration == 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.precision=half", "precision: 'half' is not known"),
        ("training.average=1", "average is the decay"),
        ("training.accumulation=3", "64 images cannot be worked through in 3 equal parts"),
        ("training.accumulation=0", "accumulation should be at least 1"),
        ("validation.samples=-1", "samples should be at least 1, or 0"),
        ("evaluation.checkpoint=newest", "checkpoint: 'newest' is not known"),
        ("norm.name=layer", "norm: 'layer' is not known"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, said):
    with pytest.raises(UsageError, match=said):
        recipe(change)


def test_balancing_is_not_done_in_parts():
    with pytest.raises(UsageError, match="BANG balances each sample against the largest of its batch"):
        recipe("training.accumulation=2", name="bang-digits")


def test_a_compiled_run_is_the_plain_one_up_to_rounding(tmp_path, monkeypatch):
    compiled = []

    def compile_cheaply(module):  # the real one takes a minute; the graph is the same
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_cheaply)
    attacked = 'method={name="adversarial", attack={name="fgsm", threat="Linf:0.1"}}'
    train(recipe(attacked), tmp_path / "plain")
    assert not compiled
    train(recipe(attacked, "training.compile=true"), tmp_path / "compiled")
    assert len(compiled) == 1
    one, other = (Checkpoint.read(newest(tmp_path / name)).weights for name in ("plain", "compiled"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
