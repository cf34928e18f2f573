"""Tables 1 and 2: LeNet on MNIST and CIFAR10_quick on CIFAR-10, trained regularly and with BANG, under FGS and HC1.

The published FGS columns follow float32 cross-entropy, whose gradient underflows: what the same attack finds with the
gradients of a float64 copy, and on a loss that does not underflow, stands beside them. So does what it finds if every
attempt counts as failed where the softmax gives the true class a probability of exactly 1 in float32, which it does
from a logit gap of about 17 on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bessemer.arithmetic import exact, flushed
from bessemer.attacks import FGSLine
from bessemer.data import Dataset, Split
from bessemer.errors import unknown
from bessemer.evaluation import SUITES, Stage, Suite
from bessemer.papers.bang import drawing
from bessemer.papers.bang.networks import COLUMNS, TABLES, percent, rank_correlation, trained
from bessemer.papers.judged import judged
from bessemer.records import Claim, Evaluation, Result, Share, provenance
from bessemer.records.evaluation import Column
from bessemer.training import Bang, Moment
from bessemer.training.methods import Method
from bessemer.training.stalling import PROBE, stalling

FGS, MARGIN, HC1 = "FGS", "FGS, margin loss", "HC1"
PRECISE = Suite("bang-fgs-float64", {FGS: FGSLine()})


@dataclass(frozen=True)
class Scale:
    """iterations: of training; None for the paper's. samples: test images attacked; None for all. rows: None for all.

    precise: test images attacked with float64 gradients.
    """

    iterations: int | None = None
    samples: int | None = None
    precise: int = 1000
    rows: tuple[str, ...] | None = None


SCALES = {
    "lenet": {
        "smoke": Scale(150, 50, 20, ("R0", "B0")),
        "cpu": Scale(None, 1000, 500),
        "full": Scale(),
    },
    "cifar-quick": {
        "smoke": Scale(30, 20, 5, ("R0", "B0")),
        "cpu": Scale(4000, 1000, 500),
        "full": Scale(),
    },
}


@dataclass(frozen=True)
class Found:
    """What was found about one network: all attacks of the table, its FGS on a float64 copy, and how it had stalled.

    certain: of each image under the attacks, whether the softmax gives its class a probability of exactly 1.
    """

    rays: Evaluation
    precise: Evaluation
    stalled: dict[str, float]
    certain: Column

    def failed(self) -> Share:
        """Of the FGS attempts that failed, those that met an all-zero gradient."""
        failed = self.rays.survivors(FGS)
        return Share(int((failed & (self.rays.attack(FGS)["zero_gradients"] > 0)).sum()), int(failed.sum()))

    def turned(self) -> Share:
        """Of the FGS attempts that failed, those that succeed on the margin loss."""
        failed = self.rays.survivors(FGS)
        return Share(int((failed & ~self.rays.survivors(MARGIN)).sum()), int(failed.sum()))


def run(
    table: str,
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, attack and compare; networks and evaluations that are in `runs` already are not made again.

    table: `lenet` (Table 1) or `cifar-quick` (Table 2). A picture is left in `runs`. watch_training, watch_evaluation:
    given a network's name, what to call as its training or evaluation goes on.
    Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES[table]:
        raise unknown("scale", scale, SCALES[table])
    began = time.monotonic()
    plan, printed = SCALES[table][scale], TABLES[table]
    found: dict[str, Found] = {}
    for name in plan.rows or printed.rows:
        model, dataset, folder = trained(table, name, runs, data_dir, watch_training(name), plan.iterations)
        asked = {}
        for suite, samples, asked_model in (
            (SUITES["bang"](None), plan.samples, model),
            (PRECISE, plan.precise, deepcopy(model).double()),
        ):
            watch = watch_evaluation(f"{name}, {suite.name}")
            asked[suite.name] = judged(asked_model, dataset, suite, folder, samples=samples, watch=watch)
        found[name] = Found(
            asked["bang"],
            asked[PRECISE.name],
            stalled(model, dataset, printed.recipe(name).method),
            certain(model, dataset.test, len(asked["bang"])),
        )
    name = f"bang-table{printed.number}"
    numbers = {row: {"ours": figures(found[row]), "published": printed.rows[row].published} for row in found}
    facts = provenance(
        seed=0,
        iterations=plan.iterations or printed.iterations,
        seconds=round(time.monotonic() - began, 1),
        threads=torch.get_num_threads(),
        evaluations={row: one.rays.provenance for row, one in found.items()},
    )
    picture(table, numbers, runs / f"{name}-{scale}.png", f"{printed.title}, scale {scale}")
    return Result(name, scale, claims(table, found), numbers, facts, beside(numbers))


@flushed()
def stalled(model: nn.Module, dataset: Dataset, method: Method) -> dict[str, float]:
    """How far training had stalled at its end, on the first training images: medians over the layers, in %.

    The model is asked as its last update saw it, with dropout. The gap lies between the two largest logits.
    """
    images, labels = dataset.train.at(slice(PROBE))
    model.train()
    if isinstance(method, Bang):
        rule = {name: getattr(method, name) for name in ("beta", "epsilon", "misclassified")}
        found = stalling(model, images, labels, **rule)
    else:
        found = stalling(model, images, labels)
    model.eval()

    def middle(values: Iterable[float]) -> float:
        return round(100 * statistics.median(values), 2)

    layers = found.layers.values()
    measured = {
        "accuracy": round(100 * found.accuracy, 2),
        "median_gap": round(found.gaps([0.5])[0], 2),
        "from_correct": middle(layer.before.correct_share for layer in layers),
        "effective": middle(layer.before.effective_share for layer in layers),
        "zero": middle(layer.zero_share for layer in layers),
    }
    balanced = [layer.after for layer in layers if layer.after is not None]
    if balanced:
        measured["from_correct_balanced"] = middle(one.correct_share for one in balanced)
        measured["effective_balanced"] = middle(one.effective_share for one in balanced)
    return measured


@flushed()
@exact()
@torch.no_grad()
def certain(model: nn.Module, split: Split, count: int, size: int = 1000) -> Column:
    """Of the first `count` images, whether the float32 softmax gives the true class a probability of exactly 1."""
    found = []
    for start in range(0, count, size):
        images, labels = split.at(slice(start, min(start + size, count)))
        found.append(model(images).softmax(1).gather(1, labels[:, None])[:, 0] == 1)
    return torch.cat(found).numpy()


def figures(found: Found) -> dict[str, Any]:
    """A row of the table in the paper's units, with what the paper does not print."""
    rays = found.rays

    def attacked(name: str, prefix: str) -> dict[str, Any]:
        linf = rays.produced(name, "linf")
        return {
            f"{prefix}_rate": percent(rays.success_rate(name)),
            f"{prefix}_pass": _rounded(rays.produced(name, "pass_score"), 4),
            f"{prefix}_linf": _rounded((255 * linf[0], 255 * linf[1]), 2),
        }

    return {
        "accuracy": percent(rays.clean_accuracy()),
        **attacked(FGS, "fgs"),
        **attacked(HC1, "hc1"),
        **attacked(MARGIN, "fgs_margin"),
        "fgs_below_100": _short(rays),
        "fgs_where_uncertain": where_uncertain(found),
        "fgs_rate_float64": percent(found.precise.success_rate(FGS)),
        "zero_gradients": percent(rays.zero_gradient_share(FGS)),
        "zero_gradients_in_float64": percent(rays.zero_in_float64_share(FGS)),
        "images": len(rays),
        "images_float64": len(found.precise),
        "stalling": found.stalled,
    }


def beside(numbers: dict[str, Any]) -> list[list[str]]:
    """The table as the paper prints it, each figure followed by the published one in parentheses."""
    titles = ("accuracy %", "FGS rate %", "FGS PASS", "FGS Linf", "HC1 rate %", "HC1 PASS", "HC1 Linf")
    uncertain = {"rate": "fgs_rate", "pass": "fgs_pass", "linf": "fgs_linf"}
    more = {"fgs_rate_float64": "FGS rate %, float64", "fgs_margin_rate": "FGS rate %, margin loss"}
    counted = [f"FGS {column} where the softmax is below 1" for column in uncertain]
    lines = [["", *titles, *more.values(), *counted]]
    for name, row in numbers.items():
        own = [f"{_text(row['ours'][column])} ({_text(row['published'][column])})" for column in COLUMNS]
        less = row["ours"]["fgs_where_uncertain"]
        back = [f"{_text(less[column])} ({_text(row['published'][there])})" for column, there in uncertain.items()]
        lines.append([name, *own, *(_text(row["ours"][column]) for column in more), *back])
    return lines


def claims(table: str, found: dict[str, Found]) -> list[Claim]:
    """What the table and the text around it say, and whether it held; of BANG, whether it held for each network."""
    printed = TABLES[table]
    rows = {name: printed.rows[name] for name in found}
    regular = [name for name in found if rows[name].setting is None]
    bang = [name for name in found if rows[name].setting is not None]
    low, high, hidden = (0.990, 0.994, 0.10) if table == "lenet" else (0.78, 0.82, 0.50)

    def each(value: Callable[[Found], object], names: list[str] | None = None) -> str:
        return ", ".join(f"{name} {value(found[name])}" for name in names or found)

    def print_of(column: str, names: list[str] | None = None) -> str:
        return ", ".join(f"{name} {_text(rows[name].published[column])}" for name in names or found)

    def accuracy(one: Found) -> float:
        return one.rays.clean_accuracy().value

    def rate(one: Found) -> float:
        return one.rays.success_rate(FGS).value

    def produced(column: str) -> Callable[[Found], float]:
        return lambda one: one.rays.produced(HC1, column)[0]

    def in_percent(value: Callable[[Found], float]) -> Callable[[Found], str]:
        return lambda one: f"{100 * value(one):.2f} %"

    def all_beyond(value: Callable[[Found], float], sign: int) -> bool:
        """Whether every BANG network lies above (+1) or below (−1) every regular one."""
        return all(sign * value(found[one]) > sign * value(found[other]) for one in bang for other in regular)

    strength = [rows[name].setting[1] for name in bang]  # type: ignore[index]
    agreement = rank_correlation(strength, [rate(found[name]) for name in bang])
    printed_agreement = rank_correlation(strength, [_first(rows[name].published["fgs_rate"]) for name in bang])
    return [
        Claim(
            f"Every network reaches an accuracy between {100 * low:.0f} and {100 * high:.1f} %",
            all(low <= accuracy(one) <= high for one in found.values()),
            each(in_percent(accuracy)),
            print_of("accuracy"),
        ),
        Claim(
            "BANG keeps or enhances accuracy: its best network is at least as accurate as the best regular one",
            max(accuracy(found[name]) for name in bang) >= max(accuracy(found[name]) for name in regular),
            each(in_percent(accuracy)),
            print_of("accuracy"),
        ),
        Claim(
            f"FGS succeeds against less than {100 * hidden:.0f} % of each BANG network's images",
            all(rate(found[name]) < hidden for name in bang),
            each(in_percent(rate)),
            print_of("fgs_rate"),
        ),
        Claim(
            "FGS succeeds less often against every BANG network than against any regular one",
            all_beyond(rate, -1),
            each(in_percent(rate)),
            print_of("fgs_rate"),
        ),
        Claim(
            "The larger epsilon, the less often FGS succeeds (rank correlation over the BANG networks below -0.5)",
            agreement < -0.5,
            f"rank correlation {agreement:.2f}",
            f"said of the grid; over these networks {printed_agreement:.2f}",
        ),
        Claim(
            f"{'Almost every' if table == 'lenet' else 'The majority of'} failed FGS attempts against BANG met a blank "
            f"gradient (at least {90 if table == 'lenet' else 50} %)",
            all(
                found[name].failed().total > 0 and found[name].failed().value >= (0.9 if table == "lenet" else 0.5)
                for name in bang
            ),
            each(Found.failed, bang),
            "almost every single one" if table == "lenet" else "the majority",
        ),
        Claim(
            "HC1 must go further against every BANG network than against any regular one (mean Linf)",
            all_beyond(produced("linf"), 1),
            each(lambda one: f"{255 * produced('linf')(one):.1f}") + " grey levels",
            print_of("hc1_linf"),
        ),
        Claim(
            "HC1 examples of every BANG network are less similar to their originals than a regular one's (mean PASS)",
            all_beyond(produced("pass_score"), -1),
            each(lambda one: f"{produced('pass_score')(one):.3f}"),
            print_of("hc1_pass"),
        ),
        Claim(
            "Ours, not the paper's: if FGS counts as failed wherever the float32 softmax is exactly 1, its published "
            "rates come back (each within 3 points)",
            all(
                abs((where_uncertain(found[name])["rate"] or 0) - _first(rows[name].published["fgs_rate"])) <= 3
                for name in found
            ),
            each(lambda one: f"{where_uncertain(one)['rate']:g} %"),
            print_of("fgs_rate"),
        ),
        Claim(
            "Ours, not the paper's: where FGS fails against BANG, the same search on a loss that cannot underflow "
            "nearly always succeeds (at least 90 %)",
            all(found[name].turned().total > 0 and found[name].turned().value >= 0.9 for name in bang),
            each(Found.turned, bang),
        ),
        Claim(
            "Ours, not the paper's: with float64 gradients FGS succeeds against BANG as often as against regular "
            "networks (within 5 points)",
            all(
                abs(found[name].precise.success_rate(FGS).value - found[other].precise.success_rate(FGS).value) <= 0.05
                for name in bang
                for other in regular
            ),
            each(lambda one: one.precise.success_rate(FGS)),
        ),
    ]


def picture(table: str, numbers: dict[str, Any], path: Path, title: str) -> None:
    """Every column of the table as a panel: published figures hollow, ours filled, a row a network."""
    columns = {
        "accuracy": "accuracy (%)",
        "fgs_rate": "FGS rate (%)",
        "fgs_linf": "FGS Linf (grey levels)",
        "hc1_rate": "HC1 rate (%)",
        "hc1_pass": "HC1 PASS",
        "hc1_linf": "HC1 Linf (grey levels)",
    }
    with drawing.sheet(path, 11, 0.34 * len(numbers) + 1.5) as figure:
        places = range(len(numbers))
        for axes, (column, words) in zip(figure.subplots(1, len(columns), sharey=True), columns.items(), strict=True):
            for place, row in enumerate(numbers.values()):
                colour = (
                    drawing.REGULAR if TABLES[table].rows[list(numbers)[place]].setting is None else drawing.BALANCED
                )
                ours = _first(row["ours"][column])
                axes.plot(_first(row["published"][column]), place, "o", color=colour, fillstyle="none", markersize=8)
                if ours is not None:
                    axes.plot(ours, place, "o", color=colour, markersize=5)
                if column == "fgs_rate" and (margin := row["ours"]["fgs_margin_rate"]) is not None:
                    axes.plot(margin, place, "x", color=drawing.OTHER, markersize=6)
            axes.set_title(words, fontsize=9)
        axes.set_yticks(places, list(numbers))
        axes.invert_yaxis()
        figure.suptitle(
            f"{title}: published (hollow) and here (filled); crosses: the same FGS search on the margin loss",
            fontsize=10,
        )


def where_uncertain(found: Found) -> dict[str, Any]:
    """FGS, had it failed wherever the softmax is exactly 1: rate in %, mean and standard deviation of PASS and Linf."""
    rays = found.rays
    turned = rays.right & ~found.certain & ~rays.survivors(FGS)

    def over(column: str, factor: float, digits: int) -> list[float | None]:
        values = factor * rays.attack(FGS)[column][turned]
        values = values[~np.isnan(values)]
        return _rounded((float(values.mean()), float(values.std())) if len(values) else (math.nan, math.nan), digits)

    return {
        "rate": percent(Share(int(turned.sum()), int(rays.right.sum()))),
        "pass": over("pass_score", 1, 4),
        "linf": over("linf", 255, 2),
    }


def _short(rays: Evaluation, reach: float = 100) -> dict[str, Any]:
    """FGS, had its rays ended at so many grey levels: rate in %, mean and standard deviation of Linf."""
    found = rays.right & ~rays.survivors(FGS) & (255 * rays.attack(FGS)["linf"] <= reach + 0.5)
    linf = 255 * rays.attack(FGS)["linf"][found]
    spread = (float(linf.mean()), float(linf.std())) if len(linf) else (math.nan, math.nan)
    return {"rate": percent(Share(int(found.sum()), int(rays.right.sum()))), "linf": _rounded(spread, 2)}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ± ".join(_text(one) for one in value)
    return "none" if value is None else f"{value:g}"


def _rounded(values: tuple[float, float], digits: int) -> list[float | None]:
    return [None if math.isnan(value) else round(value, digits) for value in values]
