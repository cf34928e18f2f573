"""Runs that start from other runs: `init = "runs/clean"` in a recipe.

What training did to the features of a network is a question about three sets of weights: the random ones at the
beginning of it all, those a run started from, and those it ended in. A run that starts from another one keeps copies of
the first two, in `checkpoints/random.safetensors` and `checkpoints/initial.safetensors`; whatever becomes of the other
run, it can be asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bessemer.errors import FileError, UsageError
from bessemer.training.checkpoint import FOLDER, INITIAL, Checkpoint, newest
from bessemer.training.recipe import Recipe, difference, read_tables

RANDOM = "random.safetensors"


def starting_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights that a run's training started from, by their names in the model's `state_dict`, on the CPU.

    Raises `UsageError` where the folder is no run, `FileError` where it kept none or they are damaged.
    """
    _tables(Path(folder))
    return _kept(Path(folder), INITIAL)


def initial_weights(folder: str | Path) -> dict[str, Tensor]:
    """The random weights that a run goes back to: its own, or those of the first run in its chain of `init`.

    By their names in the model's `state_dict`, on the CPU. Raises as `starting_weights` does.
    """
    chained = _tables(Path(folder)).get("init", "")
    return _kept(Path(folder), RANDOM if chained else INITIAL)


def begin(model: nn.Module, recipe: Recipe) -> Checkpoint:
    """Give a model the newest weights of the run that the recipe's `init` names; returns the checkpoint they are from.

    Raises `UsageError` where that is no run or one of another model, `FileError` where it has no checkpoint yet.
    """
    other = Path(recipe.init)
    name, settings = recipe.model
    where = f"recipe {recipe.name}: init: {other}"
    if not (other / "recipe.toml").is_file():
        raise UsageError(f"{where} is no run; train it first (`bessemer train RECIPE --out {other}`) or name another")
    there = Recipe.from_tables(_tables(other), other.name)
    if there.model[0] != name:
        raise UsageError(f"{where} trained a {there.model[0]}, but model.name is {name}; start from a run of a {name}")
    if there.norm != recipe.norm:
        raise UsageError(
            f"{where} trained a network with {there.norm}, but this one has {recipe.norm}; "
            "start from a run with the same [norm]"
        )
    checkpoint = Checkpoint.read(newest(other))
    for key, tensor in model.state_dict().items():
        shape = tuple(checkpoint.weights[key].shape) if key in checkpoint.weights else "missing"
        if shape != tuple(tensor.shape):
            differs = difference(settings, there.model[1], "model") or "it was made by another version"
            raise UsageError(
                f"{where} trained another {name}: {key} should be {tuple(tensor.shape)} and is {shape} ({differs}); "
                "start from a run with the same [model]"
            )
    checkpoint.restore_weights(model)
    return checkpoint


def keep_random_start(folder: Path, recipe: Recipe) -> None:
    """Copy the random weights of the chain into a run's folder; of a run that kept none, nothing."""
    try:
        weights = initial_weights(recipe.init)
    except FileError:
        return
    nothing: dict[str, Any] = {"state": {}, "param_groups": []}
    Checkpoint(0, 0, 0, recipe.model[0], weights, nothing, {}).write(folder, RANDOM)


def _tables(folder: Path) -> dict[str, Any]:
    recipe = folder / "recipe.toml"
    if not recipe.is_file():
        raise UsageError(f"{folder} is no run: it has no recipe.toml; `bessemer train RECIPE --out {folder}` makes one")
    return read_tables(recipe)


def _kept(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / FOLDER / name
    if not path.is_file():
        raise FileError(f"{folder} kept no initial weights: {path} is missing; train it again to have them")
    return Checkpoint.read(path).weights
