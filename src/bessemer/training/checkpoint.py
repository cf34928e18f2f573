"""Everything a run needs to go on, in one safetensors file that knows its own digest.

Weights, optimiser, torch's random state and the place in the data. The digest covers every byte of the file: it is
computed with its own 64 characters set to zero, and written in their place.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bessemer.errors import FileError
from bessemer.records import write_whole
from bessemer.training.methods.installed import PREFIX
from bessemer.training.optimizers import SGD
from bessemer.training.sharding import share, whole

FOLDER = "checkpoints"
INITIAL = "initial.safetensors"
BEST = "best.safetensors"
_NO_DIGEST = b"0" * 64
_PARAMETRIZATIONS = "parametrizations."  # under which torch keeps what a weight is made from
_NO_OPTIMIZER: dict[str, Any] = {"state": {}, "param_groups": []}
_KEPT = 2  # the newest, and the one before it should the newest be damaged


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    iteration: updates made. position: training images read. metrics: bytes of `metrics.jsonl` written. model: the name
    of the recipe's model. weights: the model's state, as if nothing were installed in it. optimizer: its `state_dict`.
    random: torch's states, by device. installed: the state of what a training method installed, such as the
    factors of a low-rank update. origin: the run that this one started from, and how far that had come. average: the
    moving average of the weights, where there is one. scaler: the state of the loss scale in float16.
    """

    iteration: int
    position: int
    metrics: int
    model: str
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    installed: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def take(
        cls,
        name: str,
        model: nn.Module,
        optimizer: SGD,
        iteration: int,
        position: int,
        metrics: int,
        origin: dict[str, Any],
        average: dict[str, Tensor] | None = None,
        scaler: dict[str, Any] | None = None,
    ) -> Checkpoint:
        """The present moment. Tensors are those in use, not copies: write it before going on.

        Of a network that is spread over processes, all of them must take it.
        """
        random = {"cpu": torch.get_rng_state()}
        device = next(model.parameters()).device
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        weights, installed = (_whole(part) for part in _state(model))
        state = optimizer.state_dict()
        state["state"] = {number: _whole(tensors) for number, tensors in state["state"].items()}
        mean = _whole(average or {})
        return cls(iteration, position, metrics, name, weights, state, random, installed, origin, mean, scaler or {})

    def restore(self, model: nn.Module, optimizer: SGD) -> None:
        """Put a model that the method has prepared, the optimiser and torch's random state back to this moment."""
        made = {_made(name) for name in self.installed}
        rest = {name: tensor for name, tensor in self.weights.items() if name not in made}
        self._load(model, rest | self.installed)
        optimizer.load_state_dict(self.optimizer)
        torch.set_rng_state(self.random["cpu"])
        device = next(model.parameters()).device
        if device.type == "cuda" and "cuda" in self.random:
            torch.cuda.set_rng_state(self.random["cuda"], device)

    @property
    def kept(self) -> dict[str, Tensor]:
        """The weights that a run stands for: their average, where there is one."""
        return self.average or self.weights

    def restore_weights(self, model: nn.Module) -> None:
        """Put what the run stands for into a model. Raises `FileError` where the weights are another model's."""
        self._load(model, self.kept)

    def without_course(self) -> Checkpoint:
        """The same network, without what only going on would need."""
        return replace(self, weights=self.kept, average={}, installed={}, random={}, optimizer=_NO_OPTIMIZER)

    def _load(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        now = model.state_dict()
        own = {name: share(now[name], tensor) if name in now else tensor for name, tensor in state.items()}
        try:
            model.load_state_dict(own)
        except RuntimeError as problem:
            raise FileError(
                f"the checkpoint holds the weights of another {self.model} than the recipe describes; "
                f"restore the recipe the run was trained with ({str(problem).splitlines()[-1].strip()})"
            ) from problem

    def write(self, folder: Path, name: str = "", keep_every: int = 0) -> Path:
        """Write it into a run's folder and drop the oldest; returns the path. Raises `FileError`.

        name: of the file, where it is not to be the iteration's; nothing is dropped for it then. keep_every: those of
        every so many iterations are never dropped; 0 for none.
        """
        path = folder / FOLDER / (name or (step_name(self.iteration) if self.iteration else INITIAL))
        write_whole(path, self._bytes())
        if name:
            return path
        stay = {step_name(done) for done in range(keep_every, self.iteration, keep_every)} if keep_every else set()
        for old in steps(folder)[:-_KEPT]:
            if old.name not in stay:
                old.unlink(missing_ok=True)
        return path

    def _bytes(self) -> bytes:
        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        tensors |= {f"random/{name}": tensor for name, tensor in self.random.items()}
        tensors |= {f"installed/{name}": tensor for name, tensor in self.installed.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        for number, state in self.optimizer["state"].items():
            tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in state.items()}
        facts = {
            "iteration": self.iteration,
            "position": self.position,
            "metrics": self.metrics,
            "model": self.model,
            "groups": self.optimizer["param_groups"],
            "origin": self.origin,
            "scaler": self.scaler,
        }
        metadata = {"bessemer": json.dumps(facts), "sha256": _NO_DIGEST.decode()}
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        place = content.index(_NO_DIGEST)
        digest = hashlib.sha256(content).hexdigest().encode()
        return content[:place] + digest + content[place + len(digest) :]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """The checkpoint in a file. Raises `FileError` where it is cut off, altered or none of ours."""
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise FileError(f"{path} cannot be read: {problem.strerror}") from problem
        facts = _facts(path, content)
        kinds = ("weights", "random", "installed", "average", "optimizer")
        parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for name, tensor in load(content).items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = tensor
        return cls(
            **{key: facts[key] for key in ("iteration", "position", "metrics", "model")},
            weights=parts["weights"],
            optimizer={"state": state, "param_groups": facts["groups"]},
            random=parts["random"],
            installed=parts["installed"],
            origin=facts.get("origin", {}),
            average=parts["average"],
            scaler=facts.get("scaler", {}),
        )


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in tensors.items()}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state, as if nothing were installed in it."""
    return _state(model)[0]


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's state as if nothing were installed in it, and the state of what weights are made from."""
    state = model.state_dict()
    installed = {name: tensor for name, tensor in state.items() if _PARAMETRIZATIONS in name or name.startswith(PREFIX)}
    weights = {name: tensor for name, tensor in state.items() if name not in installed}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            made = {f"{name}.{one}".lstrip("."): getattr(module, one).detach() for one in module.parametrizations}
            weights |= made
    return weights, installed


def _made(name: str) -> str:
    """The weight that an installed tensor has a part in: `conv1.weight` for `conv1.parametrizations.weight.0.u`."""
    layer, _, rest = name.partition(_PARAMETRIZATIONS)
    return layer + rest.partition(".")[0]


def _facts(path: Path, content: bytes) -> dict[str, Any]:
    """The metadata of a file whose digest is right."""
    try:
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        metadata = json.loads(header)["__metadata__"]
        place = content.index(metadata["sha256"].encode())
        blank = content[:place] + _NO_DIGEST + content[place + 64 :]
        if hashlib.sha256(blank).hexdigest() == metadata["sha256"]:
            return dict(json.loads(metadata["bessemer"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, SafetensorError):
        pass
    older = [step.name for step in steps(path.parent.parent) if step.name < path.name]
    go_on = f"delete it to go on from {older[-1]}" if older else "delete it and train again"
    raise FileError(f"{path} is damaged (cut off, or altered after it was written); {go_on}")


def step_name(iteration: int) -> str:
    """The file of the checkpoint after so many updates."""
    return f"step-{iteration:08d}.safetensors"


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run after its first step, oldest first."""
    return sorted((folder / FOLDER).glob("step-*.safetensors"))


def newest(folder: Path) -> Path:
    """The checkpoint a run would go on from. Raises `FileError` where there is none."""
    every = [folder / FOLDER / INITIAL, *steps(folder)]
    if not every[-1].is_file():
        raise FileError(f"{folder} holds no checkpoint yet; train it with `bessemer train … --out {folder}`")
    return every[-1]
