"""The networks of BANG's two tables: how each is trained, what the paper prints for it, and what is kept on disk.

A network is trained once, and a question about it is asked once, whichever table or figure needs it: what is in its
folder already is read, and what was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bessemer import data, training
from bessemer.data import Dataset
from bessemer.errors import unknown
from bessemer.records import Share
from bessemer.training import Moment, Recipe

COLUMNS = ("accuracy", "fgs_rate", "fgs_pass", "fgs_linf", "hc1_rate", "hc1_pass", "hc1_linf")
Printed = float | tuple[float, float]  # a rate in %, or mean and standard deviation


@dataclass(frozen=True)
class Row:
    """A network of a table. setting: beta and epsilon, or None for regular training. seed: of everything random.

    published: what the paper prints (rates in %, Linf in grey levels).
    """

    setting: tuple[float, float] | None
    published: dict[str, Printed]
    seed: int = 0


@dataclass(frozen=True)
class Table:
    """A table's networks, and how they are trained.

    title, number: of the architecture, of the table. regular, balanced: recipes. iterations: the paper's. drops: where
    the learning rate falls, as shares of training. beta, epsilon: the grid of the figure beside the table, first and
    last value and step. evolving: the two networks whose course is followed, and every how many iterations.
    """

    title: str
    number: int
    regular: str
    balanced: str
    iterations: int
    drops: tuple[float, ...]
    beta: tuple[float, float, float]
    epsilon: tuple[float, float, float]
    evolving: tuple[str, str]
    every: int
    rows: dict[str, Row]

    def recipe(self, name: str, iterations: int | None = None) -> Recipe:
        """How a row's network is trained. iterations: fewer than the paper's, for a smaller scale."""
        if name not in self.rows:
            raise unknown(f"network of Table {self.number}", name, self.rows)
        row = self.rows[name]
        about = f"{self.title}, {name} of BANG's Table {self.number}: "
        changes = [f"about={about}{described(row.setting)}", f"seed={row.seed}"]
        if name in self.evolving:
            every = self.every * (iterations or self.iterations) // self.iterations
            changes += [f"training.keep_every={max(10, every)}"]  # at the scale smoke there is little to be seen
        return self.trained_for(row.setting, iterations, changes)

    def trained_for(
        self, setting: tuple[float, float] | None, iterations: int | None = None, changes: list[str] | None = None
    ) -> Recipe:
        """The recipe at a beta and epsilon, or for regular training (None), with further changes."""
        length = iterations or self.iterations
        chosen = [f"training.iterations={length}", f"training.validate_every={length}"] if iterations else []
        if iterations and self.drops:
            chosen += [f"schedule.at={[round(share * length) for share in self.drops]}"]
        if setting is not None:
            chosen += [f"method.beta={setting[0]}", f"method.epsilon={setting[1]}"]
        return Recipe.named(self.regular if setting is None else self.balanced, [*chosen, *(changes or [])])


def described(setting: tuple[float, float] | None) -> str:
    """A training rule in words."""
    return "regular training" if setting is None else f"BANG at beta {setting[0]:g}, epsilon {setting[1]:g}"


def _row(setting: tuple[float, float] | None, *printed: Printed, seed: int = 0) -> Row:
    return Row(setting, dict(zip(COLUMNS, printed, strict=True)), seed)


TABLES = {
    "lenet": Table(
        "LeNet on MNIST",
        1,
        "lenet-mnist",
        "bang-lenet-mnist",
        10_000,
        (),
        (1.0, 1.6, 0.05),
        (0.78, 0.84, 0.005),
        ("R0", "B1"),
        500,
        {
            "R0": _row(None, 99.16, 90.33, (0.4072, 0.1081), (40.51, 15.72), 99.53, (0.7535, 0.1143), (122.60, 49.46)),
            "R1": _row(
                None, 99.15, 91.41, (0.4072, 0.1065), (40.70, 15.88), 99.77, (0.7517, 0.1160), (122.16, 49.07), seed=1
            ),
            "B0": _row(
                (1.0, 0.785), 99.16, 3.51, (0.6806, 0.1457), (8.34, 4.32), 95.13, (0.5359, 0.2023), (187.86, 63.66)
            ),
            "B1": _row(
                (1.0, 0.815), 99.22, 1.68, (0.7638, 0.1367), (5.52, 2.86), 94.19, (0.4880, 0.2110), (201.84, 62.51)
            ),
            "B2": _row(
                (1.2, 0.81), 99.31, 2.13, (0.7579, 0.1452), (5.57, 3.05), 94.56, (0.5129, 0.2015), (186.10, 63.77)
            ),
            "B3": _row(
                (1.35, 0.78), 99.25, 3.86, (0.6763, 0.1471), (8.28, 4.26), 94.73, (0.5709, 0.2127), (178.11, 65.76)
            ),
            "B4": _row(
                (1.5, 0.84), 99.11, 1.52, (0.8220, 0.1310), (4.19, 3.01), 97.68, (0.4669, 0.1881), (203.50, 58.97)
            ),
            "B5": _row(
                (1.6, 0.78), 99.33, 4.45, (0.6771, 0.1487), (8.20, 4.40), 98.95, (0.6376, 0.1829), (146.96, 61.97)
            ),
        },
    ),
    "cifar-quick": Table(
        "CIFAR10_quick on CIFAR-10",
        2,
        "cifar-quick",
        "bang-cifar-quick",
        20_000,
        (0.9, 0.95),
        (0.4, 1.0, 0.05),
        (0.8, 0.86, 0.005),
        ("R0", "B0"),
        1000,
        {
            "R0": _row(None, 79.59, 96.52, (0.9553, 0.0969), (4.08, 6.40), 98.97, (0.9669, 0.1005), (18.15, 29.80)),
            "R1": _row(
                None, 79.55, 96.71, (0.9513, 0.1057), (4.43, 7.05), 98.91, (0.9557, 0.1332), (22.16, 39.77), seed=1
            ),
            "B0": _row(
                (0.4, 0.855), 79.26, 34.27, (0.9511, 0.1302), (4.11, 10.31), 95.94, (0.8712, 0.1649), (55.52, 49.98)
            ),
            "B1": _row(
                (0.45, 0.805), 80.43, 45.94, (0.9818, 0.0548), (2.04, 2.49), 96.20, (0.7966, 0.2438), (77.34, 71.20)
            ),
            "B2": _row(
                (0.75, 0.8), 79.74, 41.71, (0.9828, 0.0586), (1.94, 3.03), 98.34, (0.8362, 0.2195), (64.26, 63.57)
            ),
            "B3": _row(
                (0.75, 0.845), 79.41, 35.00, (0.9526, 0.1266), (3.94, 8.71), 96.54, (0.8603, 0.1981), (59.83, 58.28)
            ),
            "B4": _row(
                (0.95, 0.84), 79.30, 34.88, (0.9575, 0.1236), (3.61, 9.60), 96.87, (0.8994, 0.1487), (48.44, 47.35)
            ),
            "B5": _row(
                (1.0, 0.8), 79.22, 41.34, (0.9803, 0.0722), (2.03, 3.64), 98.17, (0.8586, 0.1948), (61.14, 61.23)
            ),
        },
    ),
}


def trained(
    table: str,
    name: str,
    runs: Path,
    data_dir: Path | None,
    watch: Callable[[Moment], None],
    iterations: int | None = None,
) -> tuple[nn.Module, Dataset, Path]:
    """A row's network, trained into a folder of `runs`; the data it learned from; and the folder.

    iterations: fewer than the paper's. The folder carries their number, so that scales never mix.
    """
    recipe = TABLES[table].recipe(name, iterations)
    folder = runs / f"{table}-{name}-{recipe.training.iterations}"
    model = training.train(recipe, folder, resume=folder.exists(), data_dir=data_dir, watch=watch)
    return model, data.load(recipe.data[0], data_dir, **recipe.data[1]), folder


def percent(share: Share) -> float | None:
    """A share in %, for a result's numbers; None of nothing."""
    return None if math.isnan(share.value) else round(100 * share.value, 2)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; NaN where either is constant."""
    from scipy.stats import spearmanr  # noqa: PLC0415  (a second that the command line need not wait)

    return float(spearmanr(one, other)[0]) if len(set(one)) > 1 and len(set(other)) > 1 else math.nan
