"""The angles of feature purification on networks that learned from images: initial, clean and robust, neuron by neuron.

Allen-Zhu and Li's principle: after clean training (w) and adversarial training that goes on from there (w'), most
neurons have w = beta w' + v with |beta w'| > |v|, while neither w nor w' has much in common with the initial weights.
In theta(a, b) = |<a, b>| / (|a| |b|): theta(w0, w) and theta(w0, w') small, theta(w, w') large. That is the paper's
claim; the constants 0.2 and 0.8 are from memory, and `most` is read as more than half of the neurons.

Two clean networks from different seeds are the null. BANG is looked at in the same way, which is ours. Beside its
angles stands whether it removes what adversarial training removes: the cosine between v of BANG and v of linf-8,
compared with l2-0.5 and linf-8. Networks that start from the same weights may share some of their change for reasons
of their own, such as going on to learn, so a cosine above 0 alone proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from bessemer import training
from bessemer.errors import unknown
from bessemer.evaluation import Stage
from bessemer.papers.feature_purification import networks
from bessemer.purification import angles
from bessemer.purification.neurons import Weight, weights
from bessemer.purification.purify import purify
from bessemer.records import Claim, Result, provenance
from bessemer.records.purification import PURIFICATIONS, Purification, below_by_chance
from bessemer.training import Moment

NAME = "purification-angles"
SCALES = {"smoke": ("lenet",), "cpu": ("alexnet", "resnet"), "full": ("alexnet", "resnet")}
CLEAN, OTHER, STRONGEST = "clean", "clean-other", networks.STRONGEST
ROBUST = (STRONGEST, "linf-4", "l2-0.5", "l2-0.25", "bang")

SMALL, LARGE, MOST = 0.2, 0.8, 0.5  # of theta, from memory of the paper; and what `most neurons` means here


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train and compare; networks that are in `runs` already are not made again.

    Pictures are left in `runs`, as `purification-angles-SCALE-ARCHITECTURE.png`, and in each robust run the record of
    its comparison. watch_training: given a network's name, what to call as its training goes on; nothing is evaluated.
    Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    numbers: dict[str, Any] = {}
    claimed: list[Claim] = []
    for architecture in SCALES[scale]:
        folders = {
            which: networks.run(architecture, which, scale, runs, data_dir, watch_training)
            for which in (CLEAN, OTHER, *ROBUST)
        }
        found = {which: purify(folders[CLEAN], folders[which], independent=folders[OTHER]) for which in ROBUST}
        found[OTHER] = purify(folders[CLEAN], folders[OTHER])
        for which, record in found.items():
            record.save(folders[which] / PURIFICATIONS)
        models = {which: training.load(folder) for which, folder in folders.items()}
        shared = {which: common(models[CLEAN], models[which], models[STRONGEST]) for which in ROBUST[1:]}
        numbers[architecture] = {which: figures(record) for which, record in found.items()}
        numbers[architecture]["removed, cosine with linf-8"] = {
            which: round(float(np.nanmedian(cosines)), 4) for which, cosines in shared.items()
        }
        claimed += claims(architecture, found, shared)
        picture(found, runs / f"{NAME}-{scale}-{architecture}.png")
    facts = provenance(seed=0, seconds=round(time.monotonic() - began, 1), threads=torch.get_num_threads())
    return Result(NAME, scale, claimed, numbers, facts)


def common(clean: nn.Module, one: nn.Module, other: nn.Module) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The cosine between what two robust networks removed from each neuron of the clean one; NaN where nothing was."""
    w, first, second = weights(clean), weights(one), weights(other)
    return torch.cat([_cosine(_removed(w[name], first[name]), _removed(w[name], second[name])) for name in w]).numpy()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Row by row, on the CPU."""
    return ((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).cpu()


def _removed(clean: Weight, robust: Weight) -> Tensor:
    """v = w - beta w', a row a neuron."""
    return clean.rows - angles.scaling(clean.rows, robust.rows)[:, None] * robust.rows


def share(record: Purification, column: str, above: float) -> float:
    """The share of live neurons whose value is larger."""
    values = record.column(column)
    return float((values > above).mean()) if len(values) else 0.0


def figures(record: Purification) -> dict[str, Any]:
    """Medians of theta over the neurons of all layers and of each, and what an update of low rank explains."""
    rows = {row["layer"]: row for row in record.summary()}
    return {
        "relation": record.relation,
        "kept": round(record.outweighs().value, 4),
        "theta(w, w') above 0.8": round(share(record, "clean_robust", LARGE), 4),
        "layers": {
            layer: {
                key: None if isinstance(value, float) and np.isnan(value) else round(value, 4)
                for key, value in row.items()
                if key != "layer"
            }
            for layer, row in rows.items()
        },
    }


def claims(
    architecture: str, found: dict[str, Purification], shared: dict[str, np.ndarray[Any, np.dtype[np.float64]]]
) -> list[Claim]:
    """What the principle says of the strongest robust network, what the null says, and whether BANG does the same."""
    robust, null, bang = found[STRONGEST], found[OTHER], found["bang"]
    from_start = {column: 1 - share(robust, column, SMALL) for column in ("initial_clean", "initial_robust")}
    together = {which: float(np.nanmedian(cosines)) for which, cosines in shared.items()}

    def kept(record: Purification) -> bool:
        return share(record, "clean_robust", LARGE) > MOST and record.outweighs().value > MOST

    def removed(which: str) -> float:
        return float(np.median(np.concatenate([layer.ratio for layer in found[which].layers])))

    def told(record: Purification) -> str:
        above = share(record, "clean_robust", LARGE)
        return f"theta(w, w') > {LARGE} in {above:.1%}, |beta w'| > |v| in {record.outweighs().value:.1%}"

    return [
        Claim(
            f"{architecture}: clean training leaves the initial weights, theta(w0, w) <= {SMALL} in most neurons",
            from_start["initial_clean"] > MOST,
            f"{from_start['initial_clean']:.1%} (median {np.median(robust.column('initial_clean')):.2f})",
            "small (constant from memory)",
        ),
        Claim(
            f"{architecture}: so does robust training, theta(w0, w') <= {SMALL} in most neurons",
            from_start["initial_robust"] > MOST,
            f"{from_start['initial_robust']:.1%} (median {np.median(robust.column('initial_robust')):.2f})",
            "small (constant from memory)",
        ),
        Claim(
            f"{architecture}: robust training keeps the direction of the clean weights, theta(w, w') > {LARGE} in most",
            share(robust, "clean_robust", LARGE) > MOST,
            f"{share(robust, 'clean_robust', LARGE):.1%} (median {np.median(robust.column('clean_robust')):.2f})",
            "large (constant from memory)",
        ),
        Claim(
            f"{architecture}: more is kept than removed, beta > 0 and |beta w'| > |v| in most neurons",
            robust.outweighs().value > MOST,
            f"{robust.outweighs().value:.1%}",
            "most neurons",
        ),
        Claim(
            f"{architecture}: ours, not the paper's: the larger ball removes more, in Linf and L2 "
            "(median |v| / |beta w'|)",
            removed("linf-8") > removed("linf-4") and removed("l2-0.5") > removed("l2-0.25"),
            ", ".join(f"{which} {removed(which):.3f}" for which in ROBUST[:-1]),
        ),
        Claim(
            f"{architecture}: two clean networks share no such direction, theta above {LARGE} in less than 10 %",
            share(null, "clean_robust", LARGE) < 0.1,
            f"{share(null, 'clean_robust', LARGE):.1%} (median {np.median(null.column('clean_robust')):.3f})",
        ),
        Claim(
            f"{architecture}: ours, not the paper's: BANG keeps the clean directions too, and removes what adversarial "
            "training removes (the cosine between the removed parts at least half of that of l2-0.5 and linf-8)",
            kept(bang) and together["bang"] >= together["l2-0.5"] / 2 > 0,
            f"{told(bang)}; cosine with linf-8: bang {together['bang']:.3f}, l2-0.5 {together['l2-0.5']:.3f}",
        ),
    ]


def picture(found: dict[str, Purification], path: Path) -> None:
    """Histograms of theta over all neurons: a panel per network that is compared with the clean one."""
    bins = np.linspace(0, 1, 41)
    settings = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    with matplotlib.style.context(["default", {**settings, "grid.color": "#dddddd", "axes.axisbelow": True}]):
        figure = Figure(figsize=(2.9 * len(found), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(found), sharey=True)
        for panel, (which, record) in zip(panels, found.items(), strict=True):
            for column, label, colour, dashes in (
                ("clean_robust", "θ(w, w′)", "#00798c", "solid"),
                ("initial_clean", "θ(w⁰, w)", "#30343f", "dashed"),
                ("initial_robust", "θ(w⁰, w′)", "#d1495b", "solid"),
            ):
                values = record.column(column)
                shares = 100 * np.histogram(values, bins)[0] / max(1, len(values))
                panel.stairs(shares, bins, color=colour, linestyle=dashes, linewidth=1.4, label=label)
            counts = np.array([int(layer.live.sum()) for layer in record.layers])
            random = np.array([np.diff(below_by_chance(layer.size, bins)) for layer in record.layers])
            panel.stairs(
                100 * counts @ random / counts.sum(), bins, color="#888888", linestyle="dotted", label="random"
            )
            panel.set_title(f"clean → {which}")
            panel.set_xlabel("θ")
            panel.set_xlim(0, 1)
        panels[0].set_ylabel("neurons (%)")
        panels[0].legend(loc="upper center", fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})
