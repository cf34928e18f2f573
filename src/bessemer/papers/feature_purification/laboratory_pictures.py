"""The pictures of the laboratory's page, one a sentence; the first seed of each dimension stands for the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

Found = dict[str, Any]
Cells = dict[int, list[Found]]  # what each seed found, by dimension

CLEAN, ROBUST, OTHER = "#c24a00", "#0065a8", "#625d55"
NAMES = {"clean": "clean training", "robust": "adversarial training"}
COLOURS = {"clean": CLEAN, "robust": ROBUST}


def fragile(cells: Cells, path: Path) -> str:
    """Who stands at which radius."""
    with _panels(path, len(cells)) as panels:
        for panel, (dim, seeds) in zip(panels, cells.items(), strict=True):
            for name, colour in COLOURS.items():
                for place, found in enumerate(seeds):
                    curve = [found["accuracy"][name]["clean"], *found["radii"][name]["standing"]]
                    label = NAMES[name] if place == 0 else None
                    panel.plot([0, *found["radii"]["radii"]], _percent(curve), color=colour, label=label, lw=1.4)
            panel.axvline(seeds[0]["accuracy"]["radius"], color=OTHER, ls=":", lw=1)
            panel.set(title=f"d = {dim:,}", xlabel="L2 radius", ylim=(0, 102))
        panels[0].set_ylabel("samples that stand (%)")
        panels[0].legend()
    return (
        "The share of fresh samples that stand against the dense direction and PGD-50, over the radius; a line a seed. "
        "Dotted: the radius of the claims."
    )


def mixtures(cells: Cells, path: Path) -> str:
    """What neurons hold along M w*, and outside their atoms."""
    return (
        _histograms(
            cells,
            path,
            (("dense", "|cos(w, M w*)|"), ("mixture", "share of |w|² outside the kept atoms")),
            lambda found, name: found["features"][name],
        )
        + " Neurons of the clean network lean on one direction, M w*; after adversarial training they do not."
    )


def purified(cells: Cells, path: Path) -> str:
    """What is kept of each neuron, and what it held at first."""
    with _panels(path, 2, rows=len(cells)) as panels:
        for place, (dim, seeds) in enumerate(cells.items()):
            split, features = seeds[0]["features"]["decomposition"], seeds[0]["features"]
            angles, top = panels[2 * place : 2 * place + 2]
            for key, colour, label in (
                ("before", CLEAN, "θ(w⁰, w)"),
                ("after", OTHER, "θ(w⁰, w′)"),
                ("kept", ROBUST, "θ(w, w′)"),
            ):
                _stairs(angles, split[key]["histogram"], colour, label)
            angles.set(title=f"d = {dim:,}", xlabel="θ", xlim=(0, 1), yticks=[])
            for name, colour in COLOURS.items():
                _stairs(top, features[name]["top3"]["histogram"], colour, NAMES[name])
            top.set(title=f"d = {dim:,}", xlabel="share of |w|² in the three largest atoms", xlim=(0, 1), yticks=[])
        for panel in panels[:2]:
            panel.legend(loc="upper left")
        panels[0].set_ylabel("neurons")
    return (
        "Left: the angle of a neuron's weights before (w) and after (w′) adversarial training, and of both "
        "with the initial ones. Right: how much of a neuron its three largest atoms are."
    )


def withstands(cells: Cells, path: Path) -> str:
    """What attacks leave and what is proven."""
    with _panels(path, len(cells)) as panels:
        for panel, (dim, seeds) in zip(panels, cells.items(), strict=True):
            labels = ("dense\ndirection", "FGM", "PGD-50", "standard", "certified", "certified\nat ¾ radius")
            for name, offset in (("clean", -0.2), ("robust", 0.2)):
                values = [
                    [
                        *(one["accuracy"][name][attack] for attack in ("dense direction", "FGM", "PGD-50")),
                        one["standard"][name]["standard"],
                        *(one["certificate"][name][factor] for factor in ("1.0", "0.75")),
                    ]
                    for one in seeds
                ]
                places = np.arange(len(labels)) + offset
                panel.bar(places, _percent(np.mean(values, 0)), 0.38, color=COLOURS[name], label=NAMES[name])
                for one in values:
                    panel.plot(places, _percent(one), ".", color="black", ms=3)
            panel.set_xticks(range(len(labels)), labels, fontsize=8)
            panel.set(
                title=f"d = {dim:,}, radius {seeds[0]['accuracy']['radius']:.3g}",
                ylim=(0, 118),
                yticks=range(0, 101, 20),
            )
        panels[0].set_ylabel("samples that stand (%)")
        panels[0].legend(loc="upper center", ncols=2, fontsize=8)
    return "What stands after each attack, and what is proven to stand against every perturbation; dots are seeds."


def others(cells: Cells, path: Path) -> str:
    """The models that cannot hold pure features."""
    with _panels(path, len(cells), height=3.6) as panels:
        for panel, (dim, seeds) in zip(panels, cells.items(), strict=True):
            models = [name for name, one in seeds[0]["comparisons"].items() if isinstance(one, dict)]
            rows = [*models, "the network, adversarially trained"]
            for training, colour, offset in (("clean", CLEAN, -0.2), ("adversarial", ROBUST, 0.2)):
                values = [np.mean([one["comparisons"][model][training]["all"] for one in seeds]) for model in models]
                panel.barh(
                    np.arange(len(models)) + offset, _percent(values), 0.38, color=colour, label=f"{training} training"
                )
            panel.barh(
                len(models), 100 * np.mean([one["accuracy"]["robust"]["worst"] for one in seeds]), 0.38, color=ROBUST
            )
            panel.axvline(25, color=OTHER, ls=":", lw=1)
            panel.set_yticks(range(len(rows)), rows, fontsize=8)
            panel.invert_yaxis()
            panel.set(title=f"d = {dim:,}", xlabel="samples that stand (%)", xlim=(0, 102))
        panels[-1].legend(loc="upper right", fontsize=8)
    return "Every model trained clean and adversarially, judged at the same radius by all attacks; dotted: 25 %."


def scaling(points: list[tuple[int, int, float]], path: Path) -> str:
    """points: (d, k, ratio of the radii that half of the samples withstand)."""
    with _panels(path, 1) as (panel,):
        for sparsity in sorted({k for _, k, _ in points}):
            of = sorted((math.sqrt(d / k), ratio) for d, k, ratio in points if k == sparsity)
            panel.loglog(*zip(*of, strict=True), "o-", label=f"k = {sparsity}")
        low, high = (extreme(math.sqrt(d / k) for d, k, _ in points) for extreme in (min, max))
        least = min(ratio for d, k, ratio in points if math.sqrt(d / k) == low)
        panel.plot([low, high], [least, least * high / low], color=OTHER, ls=":", label="proportional")
        panel.set(xlabel="√(d / k)", ylabel="robust radius / clean radius")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(ScalarFormatter())
        panel.legend()
    return "How much farther half of the samples hold after adversarial training, at every d and k that were run."


def ranks(cells: Cells, path: Path) -> str:
    """Robust accuracy where only the best rank-r part of the change is made."""
    with _panels(path, len(cells)) as panels:
        for panel, (dim, seeds) in zip(panels, cells.items(), strict=True):
            for place, found in enumerate(seeds):
                of = found["ranks"]
                for key, colour, label in (
                    ("PGD-50", ROBUST, "stand after PGD-50"),
                    ("explained", OTHER, "share of ‖W′ − W‖²"),
                ):
                    shown = label if place == 0 else None
                    panel.plot(range(len(of["ranks"])), _percent(of[key]), color=colour, label=shown, lw=1.4)
            panel.set_xticks(range(len(of["ranks"])), [str(rank) for rank in of["ranks"]], fontsize=8)
            panel.set(title=f"d = {dim:,}", xlabel="rank of the change that is made", ylim=(0, 102))
        panels[0].set_ylabel("%")
        panels[0].legend()
    return "The clean weights plus the best rank-r part of what adversarial training changed; a line a seed."


def _histograms(cells: Cells, path: Path, keys: tuple[tuple[str, str], ...], of: Callable[[Found, str], Found]) -> str:
    with _panels(path, len(keys), rows=len(cells)) as panels:
        for place, (dim, seeds) in enumerate(cells.items()):
            for panel, (key, label) in zip(panels[place * len(keys) :], keys, strict=False):
                for name, colour in COLOURS.items():
                    _stairs(panel, of(seeds[0], name)[key]["histogram"], colour, NAMES[name])
                panel.set(title=f"d = {dim:,}", xlabel=label, xlim=(0, None), yticks=[])
        panels[0].set_ylabel("neurons")
        panels[0].legend()
    return "Histograms over the live neurons of both networks."


def _stairs(panel: Axes, histogram: Found, colour: str, label: str) -> None:
    counts = np.array(histogram["counts"])
    edges = np.linspace(histogram["low"], histogram["high"], len(counts) + 1)
    heights = counts / max(counts.sum(), 1) / max(edges[1] - edges[0], 1e-12)
    panel.stairs(heights, edges, fill=True, alpha=0.45, color=colour, label=label)
    panel.stairs(heights, edges, color=colour, lw=1)


@contextmanager
def _panels(path: Path, count: int, height: float = 3.2, rows: int = 1) -> Iterator[list[Axes]]:
    """Rows of so many panels, saved as a PNG at the end."""
    settings = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    with matplotlib.style.context(["default", {**settings, "grid.color": "#dddddd", "axes.axisbelow": True}]):
        figure = Figure(figsize=(max(6.4, 4.4 * count), height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        yield list(figure.subplots(rows, count, squeeze=False).flat)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _percent(values: Any) -> Any:
    return 100 * np.asarray(values)
