"""A model from its address: it arrives with its weights, or one sentence says what to mend."""

import argparse
import pickle
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bessemer as bs
from bessemer.errors import FileError, ModelError, UsageError
from bessemer.models.foreign import from_spec

GUIDE = (Path(__file__).parents[2] / "docs" / "your-own-model.md").read_text(encoding="utf-8")

SOURCE = """
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.fc = nn.Linear(4, width)

    def forward(self, images):
        return self.fc(self.norm(images).flatten(1))


def build_model(*positional, **named):
    return Net()


def needs(width, *, depth):
    return Net(width)


def raises():
    raise RuntimeError("no such checkpoint\\nsecond line")


def leaves():
    raise SystemExit(2)


def gives_a_tuple():
    return Net(), None


def half():
    return Net().half()


ready = Net()
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a module in it that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text("from mine import Net\n\n\ndef net():\n    return Net()\n")
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path, "the search path was changed"
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mine", "package", "mymodule") or name.startswith("broken"):
            del sys.modules[name]


@pytest.fixture
def trained(here):
    """Weights that no fresh network has."""
    torch.manual_seed(8)
    net = from_spec("mine:build_model")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
        net.norm.running_mean.fill_(0.3)
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("spec", ["mine:build_model", "mine:Net", "mine:ready", "package.inner:net"])
def test_a_function_a_class_or_a_module_is_a_model(spec, here):
    model = from_spec(spec)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model(torch.rand(2, 1, 2, 2)).shape == (2, 5)


def test_weights_come_from_every_kind_of_file(here, trained):
    save_file(trained, "w.safetensors")
    torch.save(trained, "w.pt")
    torch.save({"state_dict": trained, "epoch": 3}, "w.pth")
    torch.save({"model": {f"module.{name}": value for name, value in trained.items()}}, "parallel.ckpt")
    torch.save({f"_orig_mod.module.{name}": value for name, value in trained.items()}, "both.pth.tar")
    torch.save({"model_state_dict": trained, "optimizer": {"state": {}}}, "tutorial.bin")
    torch.save(trained, "old.pt", _use_new_zipfile_serialization=False)
    names = ("w.safetensors", "w.pt", "w.pth", "parallel.ckpt", "both.pth.tar", "tutorial.bin", "old.pt")
    assert not same(from_spec("mine:build_model"), trained)
    for name in names:
        assert same(from_spec("mine:build_model", weights=name), trained), name
        assert same(from_spec("mine:ready", weights=here / name), trained), name


def test_the_prefix_of_a_model_that_has_it_stays(here):
    (here / "broken_parallel.py").write_text(
        "from torch import nn\n\nclass Wrapped(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.module = nn.Linear(2, 2)\n"
    )
    state = {"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}
    torch.save(state, "w.pt")
    assert same(from_spec("broken_parallel:Wrapped", "w.pt"), state)


def test_old_weights_without_a_batch_count_are_taken(here, trained):
    del trained["norm.num_batches_tracked"]
    save_file(trained, "w.safetensors")
    model = from_spec("mine:build_model", "w.safetensors")
    assert torch.equal(model.fc.weight, trained["fc.weight"])


def test_half_precision_weights_are_widened_into_a_full_model_and_a_half_model_is_refused(here, trained):
    half = {name: value.half() if value.is_floating_point() else value for name, value in trained.items()}
    save_file(half, "w.safetensors")
    model = from_spec("mine:build_model", "w.safetensors")
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, half["fc.weight"].float())
    with pytest.raises(ModelError, match=r"torch.float16.*model.float\(\)"):
        from_spec("mine:half")


WRONG = {
    "mymodule": (UsageError, r"'mymodule' names no model; write module:function"),
    "mine:": (UsageError, "names no model"),
    ":build_model": (UsageError, "names no model"),
    "mine.py:build_model": (UsageError, r"'mine.py' is a path, not a module; .*write mine:build_model"),
    "./sub/mine.py:build_model": (UsageError, "go to the folder it lies in and write mine:build_model"),
    ".mine:build_model": (UsageError, "write mine:build_model"),
    "nowhere:build_model": (UsageError, r"no module nowhere, neither in .* nor installed"),
    "package.nowhere:net": (UsageError, "no module package.nowhere"),
    "nowhere.inner:net": (UsageError, "no module nowhere.inner"),
    "mine:build_modle": (UsageError, "mine: 'build_modle' is not known; did you mean 'build_model'?.*ready"),
    "package:net": (UsageError, "package defines no net, nor any other function"),
    "mine:number": (ModelError, "is of type int; name a function"),
    "mine:needs": (ModelError, "needs width, depth, but is called without arguments"),
    "mine:raises": (ModelError, r"raised RuntimeError \(no such checkpoint\);"),
    "mine:leaves": (ModelError, r"raised SystemExit \(2\)"),
    "mine:gives_a_tuple": (ModelError, "returned a tuple; it should return an nn.Module"),
    "broken_import:net": (ModelError, "broken_import imports not_there_at_all, which is not installed; pip install"),
    "broken_syntax:net": (ModelError, r"importing broken_syntax raised SyntaxError"),
    "broken_script:net": (ModelError, r"importing broken_script raised SystemExit.*only define the model"),
}


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_address_is_answered_with_a_sentence(spec, here):
    (here / "broken_import.py").write_text("import not_there_at_all\n")
    (here / "broken_syntax.py").write_text("def net(:\n")
    (here / "broken_script.py").write_text("import sys\n\nsys.exit('usage: script')\n")
    kind, sentence = WRONG[spec]
    with pytest.raises(kind, match=sentence) as told:
        from_spec(spec)
    assert "\n" not in str(told.value)


def test_a_device_that_is_not_here_is_refused(here):
    with pytest.raises(UsageError, match="device: 'toaster' is not here"):
        from_spec("mine:build_model", device="toaster")


def refused(weights, sentence, kind=FileError, spec="mine:build_model"):
    with pytest.raises(kind, match=sentence) as told:
        from_spec(spec, weights)
    assert "\n" not in str(told.value)


def test_weights_that_cannot_be_read_are_refused(here, trained):
    refused("missing.pt", "missing.pt is not there")
    refused(here, "is a folder; give the file")
    Path("w.onnx").write_bytes(b"x")
    refused("w.onnx", r"should end in .safetensors, .pt, .pth", UsageError)
    save_file(trained, "w.safetensors")
    torch.save(trained, "w.pt")
    for name in ("w.safetensors", "w.pt"):
        whole = Path(name).read_bytes()
        Path(f"cut-{name}").write_bytes(whole[: len(whole) // 2])
        refused(f"cut-{name}", "cannot be read as weights .*; copy or save it again")
    Path("misnamed.pt").write_bytes(Path("w.safetensors").read_bytes())
    Path("junk.pt").write_bytes(b"<html>not found</html>")
    Path("empty.pt").write_bytes(b"")
    for name in ("misnamed.pt", "junk.pt", "empty.pt"):
        refused(name, "does not begin as what torch.save writes does")


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (open, ("proof", "w"))


def test_no_code_in_a_file_is_run(here, trained):
    torch.save({"state_dict": trained, "args": argparse.Namespace(lr=0.1)}, "w.pth")
    refused("w.pth", r"could run any code.*torch.load\('w.pth', weights_only=False\).*save_file\(.*'w.safetensors'\)")
    torch.save(nn.Linear(2, 2), "whole.pt")
    refused("whole.pt", "holds more than tensors")
    Path("evil.pt").write_bytes(pickle.dumps(Evil()))
    refused("evil.pt", "holds more than tensors")
    torch.save(Evil(), "evil.pth")
    refused("evil.pth", "holds more than tensors")
    assert not Path("proof").exists()


def test_files_without_a_state_dict_are_refused(here):
    torch.save([torch.ones(1)], "list.pt")
    refused("list.pt", r"holds a list, not tensors by name; save model.state_dict\(\)")
    torch.save({"epoch": 1, "lr": 2, "best": 3, "more": 4, "last": 5}, "other.pt")
    refused("other.pt", "holds entries epoch, lr, best and 2 more, not tensors")
    torch.save({}, "empty.pt")
    refused("empty.pt", "not tensors by name")
    save_file({}, "empty.safetensors")
    refused("empty.safetensors", "missing: ")


def test_weights_of_another_model_are_refused(here, trained):
    wider = {name: value for name, value in trained.items() if not name.startswith("fc")}
    wider |= {"fc.weight": torch.ones(7, 4), "fc.bias": torch.ones(7)}
    save_file(wider, "wider.safetensors")
    refused(
        "wider.safetensors", r"of another shape: fc.weight is \(7, 4\), not \(5, 4\), fc.bias is \(7,\), not \(5,\)"
    )
    less = {name: value for name, value in trained.items() if "running" not in name and name != "fc.bias"}
    torch.save(less | {f"head.{place}": torch.ones(1) for place in range(5)}, "other.pt")
    refused(
        "other.pt", r"missing: norm.running_mean, norm.running_var, fc.bias; unexpected: head.0, head.1, head.2 and 2"
    )


# --- docs/your-own-model.md ------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
PYTHON, MODULE, ADDRESS, TIMM, HUGGING_FACE, ATTACKS, MODELS = BLOCKS


def run(block, names):
    exec(compile(block, "docs/your-own-model.md", "exec"), names)
    return names


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_of_the_guide_compiles(block):
    compile(block, "docs/your-own-model.md", "exec")


def test_the_guides_own_lines_run(here):
    names = run(PYTHON, {})
    assert len(names["evaluation"]) == 50
    (here / "mymodule.py").write_text(MODULE)
    with pytest.raises(FileError, match="w.safetensors is not there"):
        run(ADDRESS, {})
    (command,) = re.findall(r"```sh\n(.*?)\n```", GUIDE)
    program, verb, spec, *options = shlex.split(command)
    assert (program, verb) == ("bessemer", "evaluate")
    weights = options[options.index("--weights") + 1]
    (saved,) = re.findall(r"is `(safetensors.*?)`", GUIDE)
    model = from_spec(spec)
    exec(f"import safetensors.torch\n{saved}", {"model": model})
    state = model.state_dict()
    assert same(from_spec(spec, weights), state)
    assert same(run(ADDRESS, {})["model"], state)
    assert str(bs.threat.parse(options[options.index("--threat") + 1])) == "Linf:8/255"


def stand_in(monkeypatch, name, **contents):
    """A library that is not installed, with the same interface."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def test_the_guides_lines_for_timm_normalise_inside(monkeypatch):
    seen = []
    net = nn.Conv2d(3, 4, 1)
    net.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    stand_in(monkeypatch, "timm", create_model=lambda *found, **named: seen.append((found, named)) or net)
    names = run(TIMM, {"bs": bs, "nn": nn})
    assert seen == [(("resnet18",), {"pretrained": True})]
    images = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(net.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(names["model"](images), net((images - mean) / std))


def test_the_guides_lines_for_hugging_face_give_logits(monkeypatch):
    class Answers(nn.Module):
        def forward(self, pixel_values):
            return types.SimpleNamespace(logits=pixel_values.mean((2, 3)))

    processor = types.SimpleNamespace(image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3])
    stand_in(
        monkeypatch,
        "transformers",
        AutoImageProcessor=types.SimpleNamespace(from_pretrained=lambda name: processor),
        AutoModelForImageClassification=types.SimpleNamespace(from_pretrained=lambda name: Answers()),
    )
    names = run(HUGGING_FACE, {"bs": bs, "nn": nn})
    images = torch.rand(2, 3, 4, 4)
    expected = (images.mean((2, 3)) - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    torch.testing.assert_close(names["model"](images), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")
def test_the_guides_lines_for_other_libraries_run():
    for library in ("torchattacks", "foolbox", "art"):
        pytest.importorskip(library, reason=f"{library} is not installed: make bench installs it")
    names = run(PYTHON, {})
    names["model"].eval()
    found = run(ATTACKS, names)["evaluation"]
    assert [rows.name for rows in found.attacks] == ["ours", "theirs", "Foolbox", "nearest"]
    reference = bs.evaluate(names["model"], (names["images"], names["labels"]), "quick", names["threat"])
    names = run(MODELS.replace("evaluation =", "first =", 1), names)
    for found in (names["first"], names["evaluation"]):
        assert (found.prediction == reference.prediction).all()
        assert found.robust_accuracy("PGD-20").count == reference.robust_accuracy("PGD-20").count
