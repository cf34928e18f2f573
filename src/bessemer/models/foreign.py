"""A model of your own by its address, `package.module:function`, and its weights from a file.

Weights are `.safetensors`, or PyTorch's own files read with `weights_only=True`, which runs no code. Whatever is
wrong becomes one sentence that says how to mend it.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bessemer.errors import FileError, ModelError, UsageError, unknown

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar")
NESTED = ("state_dict", "model", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name
SHOWN = 3


def from_spec(spec: str, weights: str | Path | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """The model at an address, in evaluation mode, with the weights of a file where one is given.

    spec: `package.module:name`, looked for in the current directory and among what is installed. `name` is a function
    or a class that is called without arguments and gives an `nn.Module`, or such a module itself.
    weights: `.safetensors`, or `.pt` and `.pth` (`.ckpt`, `.bin`, `.tar`) with a dictionary of tensors, as it is or
    under `state_dict`, `model` or `model_state_dict`; the prefixes of DataParallel and torch.compile are taken off.

    Raises `UsageError` where the address or the device is wrong, `ModelError` where there is no usable model at it,
    `FileError` where the weights cannot be read or are another model's.
    """
    model = _built(spec)
    if weights is not None:
        _put(model, spec, Path(weights), _read(Path(weights)))
    half = next((tensor for tensor in model.parameters() if tensor.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise ModelError(f"{spec} has weights in {half.dtype}, but verdicts need full precision; return model.float()")
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as problem:
        raise UsageError(
            f"device: {str(device)!r} is not here ({_first_line(problem)}); use cpu or cuda:0"
        ) from problem


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).splitlines()), "") or type(problem).__name__


# --- the model -------------------------------------------------------------------------------------------------------


def _built(spec: str) -> nn.Module:
    """The model at an address."""
    path, colon, name = spec.rpartition(":")
    if not (colon and path and name):
        raise UsageError(f"{spec!r} names no model; write module:function, such as mymodule:build_model")
    if path.endswith(".py") or path.startswith(".") or "/" in path or "\\" in path:
        plain = Path(path).stem.lstrip(".")
        raise UsageError(f"{path!r} is a path, not a module; go to the folder it lies in and write {plain}:{name}")
    with _from_here():
        module = _imported(path)
        if not hasattr(module, name):
            own = [other for other, thing in vars(module).items() if _may_be_meant(module, other, thing)]
            raise unknown(path, name, own) if own else UsageError(f"{path} defines no {name}, nor any other function")
        found = getattr(module, name)
        return found if isinstance(found, nn.Module) else _called(spec, found)


def _imported(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as problem:
        missing = problem.name or path
        if path == missing or path.startswith(f"{missing}."):
            raise UsageError(
                f"there is no module {path}, neither in {Path.cwd()} nor installed; go to the folder it lies in, "
                "or install it"
            ) from problem
        raise ModelError(f"{path} imports {missing}, which is not installed; pip install it") from problem
    except (Exception, SystemExit) as problem:  # a script may look for its command line
        raise ModelError(f"importing {path} raised {_told(problem)}; it should only define the model") from problem


def _called(spec: str, found: Any) -> nn.Module:
    """What a function or class gives when it is called without arguments."""
    if not callable(found):
        raise ModelError(f"{spec} is of type {type(found).__name__}; name a function that returns an nn.Module")
    if needed := _needed(found):
        raise ModelError(f"{spec} needs {', '.join(needed)}, but is called without arguments; give them defaults")
    try:
        model = found()
    except (Exception, SystemExit) as problem:
        raise ModelError(f"{spec} raised {_told(problem)}; it should return an nn.Module when called") from problem
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned a {type(model).__name__}; it should return an nn.Module")
    return model


def _needed(function: Callable[..., Any]) -> list[str]:
    """The parameters without which a function cannot be called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins do not say
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in several]


def _may_be_meant(module: ModuleType, name: str, thing: Any) -> bool:
    """Whether a name is worth proposing: a network, or a function or class that was written there."""
    here = callable(thing) and getattr(thing, "__module__", None) == module.__name__
    return not name.startswith("_") and (here or isinstance(thing, nn.Module))


def _told(problem: BaseException) -> str:
    return f"{type(problem).__name__} ({_first_line(problem)})"


@contextmanager
def _from_here() -> Iterator[None]:
    """The current directory is the first place where modules are looked for, as in `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


# --- its weights -----------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name."""
    if not path.is_file():
        raise FileError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; give the file with the weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as problem:
            raise _damaged(path, problem) from problem
    if path.suffix not in PICKLED:
        raise UsageError(f"{path} should end in .safetensors, {', '.join(PICKLED)}, as files with weights do")
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # a zip archive, or a pickle
        raise _damaged(path, "it does not begin as what torch.save writes does")
    try:
        with warnings.catch_warnings():  # torch's doubts about a pickle come twice, as a warning and as an error
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise FileError(
            f"{path} holds more than tensors, and reading it could run any code; if you trust it, take the state dict "
            f"out of torch.load({path.name!r}, weights_only=False) once and keep it with "
            f"safetensors.torch.save_file(state_dict, {path.with_suffix('.safetensors').name!r})"
        ) from problem
    except RuntimeError as problem:
        if "TorchScript" not in str(problem):
            raise _damaged(path, problem) from problem
        raise FileError(
            f"{path} is a TorchScript program, not weights; write a function that returns "
            f"torch.jit.load({path.name!r}), and name it as module:function"
        ) from problem
    except Exception as problem:  # a cut-off pickle may raise anything
        raise _damaged(path, problem) from problem
    return _tensors(path, held)


def _damaged(path: Path, why: object) -> FileError:
    told = _first_line(why) if isinstance(why, BaseException) else why
    return FileError(f"{path} cannot be read as weights ({told}); copy or save it again")


def _tensors(path: Path, held: Any) -> dict[str, Tensor]:
    """The state dict among what a file holds."""
    if isinstance(held, Mapping):
        held = next((held[name] for name in NESTED if isinstance(held.get(name), Mapping)), held)
    if not (isinstance(held, Mapping) and held and all(isinstance(value, Tensor) for value in held.values())):
        found = f"entries {_some(held)}" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise FileError(
            f"{path} holds {found}, not tensors by name; save model.state_dict(), alone or under {' or '.join(NESTED)}"
        )
    return dict(held)


def _put(model: nn.Module, spec: str, path: Path, weights: dict[str, Tensor]) -> None:
    """Put weights into a model, all of them."""
    own = model.state_dict()
    while prefix := next((each for each in WRAPPERS if _all_begin(each, weights) and not _all_begin(each, own)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    missing, unexpected = [name for name in own if name not in weights], [name for name in weights if name not in own]
    if not shapes:  # torch itself knows which missing names do not matter
        missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(wrong.values()):
        told = "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names)
        raise FileError(f"{path} does not fit {spec} ({told}); build the very model whose state_dict() was saved")


def _all_begin(prefix: str, names: Mapping[str, Tensor]) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _some(names: Iterable[Any]) -> str:
    """The first few of some names, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
