"""A recipe says everything about a training run, in TOML: data, model, method, optimiser, schedule, seed.

Every section that has a `name` is a call: its other keys are the arguments of the class or function of that name,
checked against its signature and types, with the defaults filled in. A wrong key or value is answered with the key,
what was found, what is allowed and the nearest right spelling.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from bessemer.attacks import ATTACKS, Attack, parts
from bessemer.data import SOURCES, Augmentation
from bessemer.errors import BessemerError, UsageError, unknown
from bessemer.models import MODELS
from bessemer.threat import Threat, parse, read_number
from bessemer.training.methods import METHODS, Bang, LowRank, Method, WeightPerturbation
from bessemer.training.norms import NORMS, Norm
from bessemer.training.optimizers import Factor, require_momentum
from bessemer.training.schedules import SCHEDULES, Schedule
from bessemer.training.update import PRECISIONS

Table = dict[str, Any]
CHECKPOINTS = ("last", "best")


@dataclass(frozen=True)
class Training:
    """The `[training]` section.

    batch_size: over all processes. channels_last: the memory layout; faster for convolutions on CPUs and GPUs alike.
    shuffle: off, images come in file order, as Caffe reads them. The `every` are counted in iterations. keep_every:
    checkpoints that stay, for questions about the course of training; 0: only the newest two, and that before the first
    step.

    precision: of the passes: float32, bfloat16 or float16 (weights and updates stay in float32). accumulation: in how
    many parts a process works through its share of the batch, where that does not fit into memory at once. compile:
    with `torch.compile`. average: where not 0, the network that is validated and kept is the exponential moving average
    of the weights with this decay (Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992).
    synchronized_norm: batch norms take their statistics over all processes; else each over its own share. sharded: each
    process keeps only a share of the weights (`bessemer.training.sharding`), for networks that do not fit otherwise.
    """

    batch_size: int
    iterations: int
    shuffle: bool = True
    channels_last: bool = True
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_every: int = 0
    precision: str = "float32"
    accumulation: int = 1
    compile: bool = False
    average: float = 0.0
    synchronized_norm: bool = True
    sharded: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.sharded and self.precision == "float16":
            raise UsageError("sharded: the loss scale of float16 is not shared; take precision = 'bfloat16'")
        if not 0 <= self.average < 1:
            raise UsageError(f"average is the decay of a moving average, from 0 (off) to below 1, found {self.average}")
        if self.keep_every < 0:
            raise UsageError(f"keep_every should be at least 1, or 0 for none, found {self.keep_every}")
        for name in ("batch_size", "iterations", "log_every", "validate_every", "checkpoint_every", "accumulation"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} should be at least 1, found {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise UsageError(
                f"accumulation: {self.batch_size} images cannot be worked through in {self.accumulation} equal parts"
            )


@dataclass(frozen=True)
class Validation:
    """The `[validation]` section: what picks the best checkpoint, besides the last one.

    attack: what the validation images must withstand to count; without one, clean accuracy picks. samples: so many
    validation images are looked at, the first ones; 0 for all.
    """

    attack: Attack | None = None
    samples: int = 0

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise UsageError(f"samples should be at least 1, or 0 for all, found {self.samples}")


@dataclass(frozen=True)
class Judging:
    """The `[evaluation]` section: how `bessemer evaluate` judges the run unless told otherwise.

    checkpoint: the weights that are judged, `last` or `best` (by validation).
    """

    suite: str = "quick"
    threat: Threat | None = None
    checkpoint: str = "last"

    def __post_init__(self) -> None:
        if self.checkpoint not in CHECKPOINTS:
            raise unknown("checkpoint", self.checkpoint, CHECKPOINTS)


@dataclass(frozen=True)
class Optimizer:
    """The `[optimizer]` section: stochastic gradient descent in Caffe's order (`bessemer.training.SGD`)."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    factors: tuple[Factor, ...] = ()

    def __post_init__(self) -> None:
        require_momentum(self.momentum, self.nesterov)


# What may stand where a table has a `name`: the kinds a section or a setting can be of.
_NAMED: dict[Any, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    Attack: ("attack", ATTACKS),
    Method: ("method", METHODS),
    Schedule: ("schedule", SCHEDULES),
    Norm: ("norm", NORMS),
    **parts.PARTS,
}


@dataclass(frozen=True)
class Recipe:
    """A complete recipe: its tables with every default filled in, and the values they stand for.

    init: the folder of the run whose newest weights training starts from; empty for random weights.
    Make one with `read`, `named` or `from_tables`; all raise `UsageError` where it cannot be carried out.
    """

    name: str
    tables: Table
    seed: int
    init: str
    method: Method
    optimizer: Optimizer
    schedule: Schedule
    augmentation: Augmentation
    norm: Norm
    training: Training
    validation: Validation
    evaluation: Judging

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any], name: str) -> Recipe:
        """The recipe that nested tables describe."""
        sections = {"about", "seed", "init", "data", "model", "method", "optimizer", "schedule", "augmentation"}
        sections |= {"norm", "training", "validation", "evaluation"}
        for key in tables:
            if key not in sections:
                raise unknown(f"recipe {name}: section", key, sections)
        for key in ("data", "model", "training", "optimizer"):
            if key not in tables:
                raise UsageError(f"recipe {name}: the section [{key}] is missing")
        complete: Table = {
            "about": _value(str, tables.get("about", ""), "about")[1],
            "seed": _value(int, tables.get("seed", 0), "seed")[1],
            "init": _value(str, tables.get("init", ""), "init")[1],
        }
        for key, registry in (("data", SOURCES), ("model", MODELS)):
            called, arguments = _choose(key, registry, _table(tables[key], key), key)
            _, settings = _arguments(called, arguments, key, leave_out=("root",))
            complete[key] = {"name": _table(tables[key], key)["name"], **settings}
        values: Table = {}
        for key, kind, default in (
            ("method", Method, {"name": "plain"}),
            ("optimizer", Optimizer, None),
            ("schedule", Schedule, {"name": "fixed"}),
            ("augmentation", Augmentation, {}),
            ("norm", Norm, {"name": "batch"}),
            ("training", Training, None),
            ("validation", Validation, {}),
            ("evaluation", Judging, {}),
        ):
            values[key], complete[key] = _value(kind, tables.get(key, default), key)
        _require_whole_batches(values["method"], values["training"].accumulation)
        _require_whole_weights(values["method"], values["training"].sharded)
        return cls(name, complete, complete["seed"], complete["init"], **values)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """The recipe in a TOML file."""
        return cls.from_tables(read_tables(path), path.stem)

    @classmethod
    def named(cls, name: str, changes: Iterable[str] = ()) -> Recipe:
        """A recipe that ships with Bessemer, or a path to one; `changes` are texts such as `method.beta=1.2`."""
        path = recipes().get(name, Path(name))
        if path.suffix != ".toml":
            raise unknown("recipe", name, recipes())
        tables = read_tables(path)
        for change in changes:
            _change(tables, change)
        return cls.from_tables(tables, path.stem)

    @property
    def data(self) -> tuple[str, Table]:
        """The data set's name and settings."""
        return _named_settings(self.tables["data"])

    @property
    def model(self) -> tuple[str, Table]:
        """The model's name and settings."""
        return _named_settings(self.tables["model"])

    def to_toml(self) -> str:
        """The complete recipe as text."""
        return tomli_w.dumps(self.tables)


def recipes() -> dict[str, Path]:
    """The recipes that ship with Bessemer, by name."""
    folder = Path(str(resources.files("bessemer") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_tables(path: Path) -> Table:
    """The tables of a TOML file. Raises `UsageError` where there is none or it is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"{path} is no TOML: {problem}") from problem


def difference(before: Any, now: Any, where: str = "") -> str:
    """The first place where two tables differ, in words; empty where they do not."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            if found := difference(before.get(key), now.get(key), f"{where}.{key}".lstrip(".")):
                return found
        return ""
    return "" if before == now else f"{where} was {before!r} and is now {now!r}"


def _require_whole_batches(method: Method, parts: int) -> None:
    """Refuse accumulation where a method needs the gradient of the whole batch: it would see each part by itself."""
    if parts > 1 and isinstance(method, WeightPerturbation):
        raise UsageError(
            f"training.accumulation: weights are perturbed along the gradient of the whole batch, and of {parts} parts "
            "each would perturb them its own way; take accumulation = 1, a smaller batch_size, or more processes"
        )
    if parts > 1 and isinstance(method, Bang):
        raise UsageError(
            f"training.accumulation: BANG balances each sample against the largest of its batch, and of {parts} parts "
            "it would only ever see one; take accumulation = 1, a smaller batch_size, or more processes"
        )
    if isinstance(inside := getattr(method, "inside", None), Method):
        _require_whole_batches(inside, parts)


def _require_whole_weights(method: Method, sharded: bool) -> None:
    """Refuse sharding where a method computes with other weights than the network's own."""
    if sharded and isinstance(method, WeightPerturbation | LowRank):
        raise UsageError(
            f"training.sharded: {type(method).__name__} puts other weights in place of the network's, which a process "
            "that holds a share of them cannot; take sharded = false, or another method"
        )
    if isinstance(inside := getattr(method, "inside", None), Method):
        _require_whole_weights(inside, sharded)


def _change(tables: Table, change: str) -> None:
    """Carry out `--set section.key=value`; the value is TOML, or else text."""
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise UsageError(f"--set takes KEY=VALUE, such as method.beta=1.2, not {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, key = path.strip().split(".")
    place = tables
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {change}: {section} is a value, not a section")
    place[key] = value


def _named_settings(table: Table) -> tuple[str, Table]:
    return table["name"], {key: value for key, value in table.items() if key != "name"}


def _table(value: Any, where: str) -> Table:
    if not isinstance(value, dict):
        raise UsageError(f"{where} should be a section with a name and settings, found {value!r}")
    return value


def _choose(
    kind: str, registry: Mapping[str, Callable[..., Any]], table: Table, where: str
) -> tuple[Callable[..., Any], Table]:
    """What a table's `name` calls, and its other entries."""
    if "name" not in table:
        raise UsageError(f"{where}: name is missing; allowed: {', '.join(sorted(registry))}")
    name = table["name"]
    if not isinstance(name, str) or name not in registry:
        raise unknown(f"{where}.name: {kind}", str(name), registry)
    return registry[name], {key: value for key, value in table.items() if key != "name"}


def _arguments(
    called: Callable[..., Any], table: Table, where: str, leave_out: tuple[str, ...] = ()
) -> tuple[Table, Table]:
    """The arguments a table gives to a class or function: as values, and as a complete table."""
    signature = {
        name: parameter for name, parameter in inspect.signature(called).parameters.items() if name not in leave_out
    }
    # a dataclass may inherit fields whose types its own file does not know
    hints = get_type_hints(called.__init__ if inspect.isclass(called) and not is_dataclass(called) else called)
    for key in table:
        if key not in signature:
            if not signature:
                raise UsageError(f"{where}.{key} is not known; there is nothing to set here")
            raise unknown(f"{where}: setting", key, signature)
    values: Table = {}
    complete: Table = {}
    for name, parameter in signature.items():
        if name in table:
            values[name], complete[name] = _value(hints[name], table[name], f"{where}.{name}")
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{where}: the setting {name} is missing")
        else:
            written = _written(parameter.default)
            if written is not None:
                complete[name] = written
    return values, complete


def _value(hint: Any, value: Any, where: str) -> tuple[Any, Any]:
    """What a value of a recipe stands for, and how the complete recipe writes it."""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)] if hint is not Schedule else [hint]
    kind = kinds[0]
    if kind in _NAMED:
        word, registry = _NAMED[kind]
        called, arguments = _choose(word, registry, _table(value, where), where)
        made, complete = _made(called, arguments, where)
        return made, {"name": value["name"], **complete}
    if kind is Threat:
        if not isinstance(value, str):
            raise UsageError(f"{where} should be text such as 'Linf:8/255', found {value!r}")
        threat = _explained(where, parse, value)
        return threat, str(threat)
    if kind in (Optimizer, Augmentation, Training, Validation, Judging):
        return _made(kind, _table(value, where), where)
    if kind is Factor:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where} should be a list of tables [[{where}]], found {value!r}")
        pairs = [
            _made(Factor, _table(item, f"{where}[{place}]"), f"{where}[{place}]") for place, item in enumerate(value)
        ]
        return tuple(made for made, _ in pairs), [complete for _, complete in pairs]
    if float in kinds and isinstance(value, str):
        value = _explained(where, read_number, value)
    try:
        made = TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError, ValueError) as problem:
        said = (
            problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else "a date or time has no place here"
        )
        raise UsageError(f"{where}: {said[0].lower() + said[1:]}, found {value!r}") from problem
    return made, _written(made)


def _made(called: Callable[..., Any], table: Table, where: str) -> tuple[Any, Table]:
    values, complete = _arguments(called, table, where)
    return _explained(where, called, **values), complete


def _explained(where: str, called: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """The result of a call whose complaint says where in the recipe it comes from."""
    try:
        return called(*arguments, **settings)
    except BessemerError as problem:
        raise UsageError(f"{where}: {problem}") from problem


def _written(value: Any) -> Any:
    """A value as TOML holds it; None, which TOML has not, is left out."""
    if isinstance(value, Threat):
        return str(value)
    for _, registry in _NAMED.values():
        for name, kind in registry.items():
            if type(value) is kind:
                return {"name": name, **_fields(value)}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    return value


def _fields(value: Any) -> Table:
    return {name: written for name, item in vars(value).items() if (written := _written(item)) is not None}
