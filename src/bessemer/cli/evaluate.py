"""`bessemer evaluate`: attack a run or a model of your own, and keep a verdict per image."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from bessemer import data as sources
from bessemer import evaluation, processes, training
from bessemer.cli.options import DataDir, Device, Interrupted
from bessemer.cli.progress import evaluation_bar, progress
from bessemer.data import Dataset
from bessemer.errors import BessemerError, ThreatError, UsageError, unknown
from bessemer.evaluation import Suite
from bessemer.models.foreign import from_spec
from bessemer.records import Evaluation, file_name
from bessemer.threat import Threat, parse

_SECONDS = {"s": 1, "m": 60, "h": 3600}


class BelowError(BessemerError):
    """Robust accuracy under the bar that `--fail-under` sets."""

    exit_code = 3


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run's folder, or a model of your own as module:function.")
    ],
    suite: Annotated[
        str | None, typer.Option(metavar="SUITE", help="quick, standard, …; the recipe's (or quick) unless given.")
    ] = None,
    threat: Annotated[
        str | None, typer.Option(metavar="NORM:EPS", help="Linf:8/255, L2:0.5, L1:12; the recipe's unless given.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="A data set's name, or a folder of images DIR/CLASS/*.png."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For module:function: .safetensors, .pt or .pth.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=1, help="Make each image of a folder a square of this side.")
    ] = None,
    samples: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N test images.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="30s, 10m, 2h: as many images as fit.")] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Search in bfloat16; each success is confirmed in float32.")
    ] = False,
    eight_bit: Annotated[bool, typer.Option("--eight-bit", help="Only images that an 8-bit file can hold.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of random starts.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="As many as memory allows unless given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where records go; the run, or runs/NAME for your own model.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record here too, as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line per image and attack here.")] = None,
    save_adversarial: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the adversarial images here, as .npz files.")
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", min=0, max=100, help="Exit code 3 if fewer images stand in the worst case."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="last|best", help="Which weights of a run; as its recipe says unless given.")
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(metavar="NAME|all", help="Of a mixture norm: which branch predicts; all: every pair of branches."),
    ] = None,
    attacked_branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which branch is attacked; the one that predicts unless given.")
    ] = None,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Attack a network with every attack of a suite, on test images.

    [bold]Examples[/bold]
      bessemer evaluate runs/bang-digits
      bessemer evaluate runs/digits --suite standard --threat L2:0.5
      bessemer evaluate mymodule:build_model --weights w.safetensors
        --data DIR --suite standard --threat Linf:8/255 --budget 10m

    A verdict per image and attack is kept in RUN/records. A stopped evaluation
    goes on where it was when the same command is given again; under torchrun,
    processes share the images.
    """
    seconds = None if budget is None else _seconds(budget)
    wanted = None if threat is None else _threat(threat)
    _require_places(json, csv, save_adversarial)
    with processes.under_torchrun(device) as own_device:
        alone = processes.place()[0] == 0
        if ":" in model and not Path(model).exists():
            if data is None:
                raise UsageError("--data is missing: which images? A data set of `bessemer data list`, or a folder")
            if checkpoint or branch or attacked_branch:
                raise UsageError("--checkpoint and the branches go with a run's folder, not with module:function")
            name = model if weights is None else f"{model} {weights}"  # other weights are another model
            judged = [_Judged(from_spec(model, weights, own_device), name)]
            folder = out or Path("runs") / re.sub(r"[^\w.-]+", "-", name)
            chosen, ball, dataset = suite or "quick", wanted, _data(data, size, data_dir)
        else:
            if weights is not None:
                raise UsageError(f"--weights goes with module:function; {model} is a run, which has its own weights")
            judged = _views(model, own_device, checkpoint or "", branch, attacked_branch)
            folder, judging = out or Path(model), judged[0].network.recipe.evaluation
            chosen, ball = suite or judging.suite, judging.threat if wanted is None else wanted
            dataset = images_for(judged[0].network, data, data_dir, size)
        if len(judged) > 1 and (json or csv or save_adversarial or fail_under is not None):
            raise UsageError("--json, --csv, --save-adversarial and --fail-under take one --branch, not all of them")
        if fail_under is not None:
            _require_bar(fail_under, chosen, ball)
        images = min(samples or len(dataset.test), len(dataset.test))
        question = f"{chosen}-8bit" if eight_bit else chosen
        asked = file_name(question, str(ball or ""), dataset.name, images, seed, fast)
        attacks = evaluation.suites.named(chosen, ball)
        for one in judged:
            journal = folder / "records" / f"{one.label}{asked}.partial"
            found = evaluated(
                one.network,
                dataset,
                attacks if one.attacked is None else evaluation.suites.through(attacks, one.attacked),
                ball,
                one.name,
                resume=journal,
                samples=samples,
                seed=seed,
                batch_size=batch_size,
                fast=fast,
                eight_bit=eight_bit,
                budget=seconds,
                save_adversarial=save_adversarial,
            )
            if alone:
                _keep(found, folder / "records", one.label, json, csv)
                shutil.rmtree(journal, ignore_errors=True)
    if not alone:
        return
    Console().print(f"\nNext: {shlex.join(['bessemer', 'report', str(folder)])}", markup=False, soft_wrap=True)
    if fail_under is not None:
        _require(found, fail_under)


def _keep(found: Evaluation, records: Path, label: str, json: Path | None, csv: Path | None) -> None:
    """Write what was found, and show it: a full disk shall not cost it."""
    try:
        found.write(records / f"{label}{found.name}.json")
        if json is not None:
            found.write(json)
        if csv is not None:
            found.to_csv(csv)
    finally:
        print_table(found)


@dataclass(frozen=True)
class _Judged:
    """A network that is judged. name: in tables; label: what the names of its records begin with.

    attacked: the network that attacks search on, where it is another one.
    """

    network: Any
    name: str
    label: str = ""
    attacked: nn.Module | None = None


def _views(run: str, device: str, checkpoint: str, branch: str | None, attacked: str | None) -> list[_Judged]:
    """The network of a run, or, of one with a mixture norm, the pairs of branches that are asked for."""
    name = Path(run).resolve().name
    network: Any = training.load(run, device, checkpoint)
    checkpoint = checkpoint or network.recipe.evaluation.checkpoint
    suffix, label = (", best", "best_") if checkpoint == "best" else ("", "")
    if network.iteration < network.recipe.training.iterations and checkpoint != "best":
        stands = f"{run} has come to iteration {network.iteration} of {network.recipe.training.iterations}"
        _note(f"{stands}; this is what is judged.")
        suffix, label = f", iteration {network.iteration}", f"iteration-{network.iteration}_"
    if branch is None:
        if attacked is not None:
            raise UsageError("--attacked-branch needs a --branch that predicts")
        return [_Judged(network, name + suffix, label)]
    branches = training.branches(network.recipe)
    if not branches:
        raise UsageError(f"{run}: the network has no mixture norm, and so no branches; leave out --branch")
    for asked in (branch, attacked):
        if asked not in (None, "all", *branches):
            raise unknown(f"{run}: branch", str(asked), branches)
    loaded = {each: training.load(run, device, checkpoint, each) for each in branches}
    if branch == "all":
        if attacked is not None:
            raise UsageError("--branch all goes through every pair of branches; leave out --attacked-branch")
        pairs = [(one, other) for one in branches for other in branches]
    else:
        pairs = [(branch, attacked or branch)]
    return [
        _Judged(
            loaded[predicting],
            f"{name}{suffix}: {predicting} branch predicts, {searched} branch attacked",
            f"{label}{predicting}-through-{searched}_",
            None if searched == predicting else loaded[searched],
        )
        for predicting, searched in pairs
    ]


def images_for(model: Any, name: str | None = None, data_dir: Path | None = None, size: int | None = None) -> Dataset:
    """The data set of a run's recipe, or the one that is named, which must fit the model."""
    own, settings = model.recipe.data
    if name is None or name == own:
        dataset = sources.load(own, data_dir, **settings, **({} if size is None else {"size": size}))
    else:
        dataset = _data(name, size, data_dir)
    if dataset.image_shape != model.image_shape:
        raise UsageError(
            f"the model takes images of shape {model.image_shape}, but {dataset.name} has {dataset.image_shape}; "
            f"choose another --data, such as {own}"
        )
    if len(dataset.classes) != model.classes:
        raise UsageError(
            f"the model tells {model.classes} classes apart, but {dataset.name} has {len(dataset.classes)}; "
            f"choose another --data, such as {own}"
        )
    return dataset


def evaluated(
    model: nn.Module,
    dataset: Dataset,
    suite: str | Suite,
    threat: Threat | None,
    name: str,
    **settings: Any,
) -> Evaluation:
    """What an evaluation finds, with a progress bar meanwhile."""
    with progress() as bars:
        alone = processes.place()[0] == 0  # of several processes only the first shows how far it is
        show = (
            evaluation_bar(bars, f"{name}: {suite if isinstance(suite, str) else suite.name}")
            if alone
            else lambda stage: None
        )
        try:
            return evaluation.evaluate(model, dataset, suite, threat, name=name, watch=show, say=_note, **settings)
        except KeyboardInterrupt:
            kept = "; the same command goes on where it was" if "resume" in settings else ""
            raise Interrupted(f"interrupted{kept}") from None


def print_table(found: Evaluation) -> None:
    """The summary as a table, and the doubts in words."""
    console = Console(highlight=False)
    threat = f" at {found.threat}" if found.threat else ""
    images = f"{len(found):,} image{'s' if len(found) > 1 else ''}"
    title = escape(f"{found.model} under {found.suite}{threat}, {images}")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("attack", overflow="fold")
    with_pass = found.suite == "bang"
    minimal = any(rows.kind == "minimal" for rows in found.attacks) and not with_pass
    extra = ("PASS", "Linf,\ngrey levels") if with_pass else ("median\ndistance",) if minimal else ()
    for column in ("right %", "95 %\ninterval", "turned %", *extra):
        table.add_column(column, justify="right", overflow="fold")  # a narrow terminal shall not cut figures off
    for row in found.summary():
        low, high = row["interval"]
        cells = [row["attack"], f"{100 * row['accuracy']:.1f}", f"{100 * low:.1f} – {100 * high:.1f}"]
        cells.append(f"{100 * row['success_rate']:.2f}" if row.get("success_rate", math.nan) >= 0 else "")
        if with_pass and "pass_score" in row:
            cells += [_spread(row["pass_score"], 4), _spread(row["linf_grey_levels"], 2)]
        if minimal:
            cells.append(f"{row['median_distance']:.4g}" if row.get("median_distance", math.nan) >= 0 else "")
        table.add_row(*cells)
    console.print(table)
    if curve := found.over_budgets():
        stand = "; ".join(f"{count:,}: {share}" for count, share in curve.items())
        console.print(f"right after so many steps, {stand}", markup=False, soft_wrap=True)
    for attack, remark in found.notes.get("remarks", {}).items():
        console.print(f"note: {attack}: {remark}", markup=False, soft_wrap=True)
    for finding in found.findings:
        if finding.verdict == "doubt":
            console.print(
                f"doubt: {finding.name}: {finding.figure}. {finding.advice}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )


def _data(name: str, size: int | None, data_dir: Path | None) -> Dataset:
    """A data set by name, or a folder of images as `folder:PATH` or just `PATH`."""
    source, _, path = name.partition(":")
    if source not in sources.SOURCES and Path(name).is_dir():
        source, path = "folder", name
    settings: dict[str, Any] = {"path": path} if path else {}
    if source not in sources.SOURCES and (os.sep in name or name.startswith((".", "~"))):
        raise UsageError(f"--data: there is no folder {name}")
    if size is not None:
        settings["size"] = size
    return sources.load(source, data_dir, **settings)


def _require_places(json: Path | None, csv: Path | None, save_adversarial: Path | None) -> None:
    """Refuse places that cannot be meant before hours are spent."""
    for option, file in (("--json", json), ("--csv", csv)):
        if file is not None and file.is_dir():
            raise UsageError(f"{option}: {file} is a folder; name the file to write")
    if save_adversarial is not None and save_adversarial.exists() and not save_adversarial.is_dir():
        raise UsageError(f"--save-adversarial: {save_adversarial} is a file; name a folder")


def _require_bar(percent: float, suite: str, threat: Threat | None) -> None:
    """Refuse a bar that no evaluation of this suite could be held against."""
    if math.isnan(percent):
        raise UsageError("--fail-under: nan is no share; write a number from 0 to 100")
    attacks = evaluation.suites.named(suite, threat).attacks.values()
    if not any(getattr(attack, "threat", None) for attack in attacks):
        raise UsageError(f"--fail-under needs attacks with a radius, and the suite {suite} has none")


def _require(found: Evaluation, percent: float) -> None:
    worst = found.worst_case()
    assert worst is not None, "an unbounded suite was refused before"
    if 100 * worst.count < percent * worst.total:
        raise BelowError(f"robust accuracy is {worst}, under the {percent:g} % that --fail-under asks for")
    if doubts := sum(finding.verdict == "doubt" for finding in found.findings):
        _note(
            f"{worst} is not under {percent:g} %, but {doubts} doubt{'s' if doubts > 1 else ''} "
            f"stand{'' if doubts > 1 else 's'} above: the true figure may be lower."
        )


def _threat(text: str) -> Threat:
    """The threat of `--threat`; a radius that cannot be meant is wrong use."""
    try:
        return parse(text)
    except (ThreatError, UsageError) as problem:
        raise UsageError(f"--threat {text!r}: {problem}") from problem


def _seconds(text: str) -> float:
    """`30s`, `10m`, `2h` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"--budget {text!r} is no time; write 30s, 10m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def _note(sentence: str) -> None:
    if processes.place()[0] == 0:
        Console(stderr=True).print(f"Note: {sentence}", markup=False, highlight=False, soft_wrap=True)


def _spread(found: tuple[float, float], digits: int) -> str:
    """Mean and deviation; nothing where no image was produced."""
    mean, deviation = found
    return "" if math.isnan(mean) else f"{mean:.{digits}f} ± {deviation:.{digits}f}"
