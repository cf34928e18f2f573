"""Is BANG robust, or are its gradients hidden? Three networks of Table 1 under attacks that do not depend on it.

The published FGS column follows float32 cross-entropy, whose gradient at the logits is about e^−gap: from a gap of
87 between the two largest logits on it is exactly zero, and no ray can be tried. Beside it stand the same rays taken
from a float64 copy of the network (zero from a gap of 745 on) and from the margin loss (never), PGD with both losses,
an ensemble of attacks, and what decides between the two readings: how far the nearest wrong answer lies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bessemer.arithmetic import exact, flushed
from bessemer.attacks import PGD, FGSLine, HotCold
from bessemer.data import Split
from bessemer.errors import unknown
from bessemer.evaluation import SUITES, Stage, Suite
from bessemer.evaluation.paired import exceeds, gain
from bessemer.papers.bang import drawing
from bessemer.papers.bang.networks import TABLES, percent, trained
from bessemer.papers.judged import judged
from bessemer.records import Claim, Evaluation, Result, Share, provenance
from bessemer.records.evaluation import Column
from bessemer.threat import Linf
from bessemer.training import Moment

REGULAR, BANG = "R0", ("B0", "B4")
RADII = (0.1, 0.3)
FGS, MARGIN, HC1 = "FGS", "FGS, margin loss", "HC1"
RAYS = Suite("bang-rays", {FGS: FGSLine(), MARGIN: FGSLine(loss="margin"), HC1: HotCold()})


@dataclass(frozen=True)
class Scale:
    """Iterations (None: as in the paper); how many images meet the rays, PGD and the costly searches (None: all).

    ensemble: the suite that judges at each radius. nearest: the attacks of the suite `minimal` that are asked.
    """

    iterations: int | None
    rays: int | None
    bounded: int
    costly: int
    ensemble: str = "standard"
    nearest: tuple[str, ...] = ("DeepFool, L2", "DDN, L2", "FAB, L2", "DeepFool, Linf", "FAB, Linf")


SCALES = {
    "smoke": Scale(40, 20, 5, 5, "quick", ("DDN, L2", "DeepFool, Linf")),
    "cpu": Scale(None, 1000, 1000, 100),
    "full": Scale(None, None, 1000, 1000),
}


@dataclass(frozen=True)
class Found:
    """What was found about one network.

    accuracy: on all test images. gaps: between the two largest logits of those it gets right. precise: the rays of its
    float64 copy. pgd, ensemble: by radius.
    """

    accuracy: Share
    gaps: Column
    rays: Evaluation
    precise: Evaluation
    pgd: dict[float, Evaluation]
    ensemble: dict[float, Evaluation]
    minimal: Evaluation

    @property
    def evaluations(self) -> list[Evaluation]:
        """All of them."""
        return [self.rays, self.precise, *self.pgd.values(), *self.ensemble.values(), self.minimal]


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """Train, attack and compare; networks and evaluations that are in `runs` already are not made again.

    A picture of the rays is left in `runs`. watch_training, watch_evaluation: given a name, what to call
    as that training or evaluation goes on. Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    found = {
        name: _found(name, SCALES[scale], runs, data_dir, watch_training(name), watch_evaluation)
        for name in (REGULAR, *BANG)
    }
    picture(found, runs / f"bang-gradients-{scale}.png")
    facts = provenance(
        seed=0,
        seconds=round(time.monotonic() - began, 1),
        threads=torch.get_num_threads(),
        evaluations={
            name: {f"{one.suite} {one.threat}".strip(): one.provenance for one in network.evaluations}
            for name, network in found.items()
        },
    )
    numbers = {
        name: {"ours": figures(found[name]), "published": TABLES["lenet"].rows[name].published} for name in found
    }
    return Result("bang-gradients", scale, claims(found), numbers, facts)


def _found(
    name: str,
    scale: Scale,
    runs: Path,
    data_dir: Path | None,
    watch_training: Callable[[Moment], None],
    watch_evaluation: Callable[[str], Callable[[Stage], None]],
) -> Found:
    """One network, trained and asked everything."""
    model, dataset, folder = trained("lenet", name, runs, data_dir, watch_training, scale.iterations)

    def ask(suite: Suite, samples: int | None, model: nn.Module = model) -> Evaluation:
        watch = watch_evaluation(f"{name}, {suite.name}")
        return judged(model, dataset, suite, folder, samples=samples, watch=watch)

    minimal = SUITES["minimal"](None)
    accuracy, gaps = _unattacked(model, dataset.test)
    return Found(
        accuracy,
        gaps,
        rays=ask(RAYS, scale.rays),
        precise=ask(replace(RAYS, name="bang-rays-float64"), scale.rays, deepcopy(model).double()),
        pgd={eps: ask(_pgd(Linf(eps)), scale.bounded) for eps in RADII},
        ensemble={eps: ask(replace(SUITES[scale.ensemble](Linf(eps)), curve=()), scale.costly) for eps in RADII},
        minimal=ask(replace(minimal, attacks={key: minimal.attacks[key] for key in scale.nearest}), scale.costly),
    )


def _pgd(threat: Linf) -> Suite:
    return Suite("pgd-40", {"PGD-40": PGD(threat), "PGD-40, margin loss": PGD(threat, loss="margin")})


@flushed()
@exact()
def _unattacked(model: nn.Module, split: Split, size: int = 500) -> tuple[Share, Column]:
    """Accuracy, and the gaps between the two largest logits of images that are classified correctly."""
    right: list[Tensor] = []
    gaps: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(split), size):
            images, labels = split.at(slice(start, start + size))
            logits = model(images)
            largest = logits.topk(2, dim=1).values
            right.append(logits.argmax(1) == labels)
            gaps.append((largest[:, 0] - largest[:, 1])[right[-1]])
    return Share(int(torch.cat(right).sum()), len(split)), torch.cat(gaps).numpy()


def figures(found: Found) -> dict[str, Any]:
    """The figures of one network: rates and shares in %, distances in [0, 1] pixels, Linf of HC1 in grey levels."""

    def under(suites: dict[float, Evaluation]) -> dict[str, Any]:
        return {
            f"Linf {eps}": {
                **{rows.name: percent(one.robust_accuracy(rows.name)) for rows in one.attacks if suites is found.pgd},
                "worst case": percent(one.worst_case() or Share(0, 0)),
                "images": len(one),
            }
            for eps, one in suites.items()
        }

    return {
        "accuracy": percent(found.accuracy),
        "median_gap_of_logits": round(float(np.median(found.gaps)), 2),
        "rays": {
            "images": len(found.rays),
            "zero_gradients": percent(found.rays.zero_gradient_share(FGS)),
            "zero_gradients_float64": percent(found.precise.zero_gradient_share(FGS)),
            "fgs_rate": percent(found.rays.success_rate(FGS)),
            "fgs_rate_float64": percent(found.precise.success_rate(FGS)),
            "fgs_rate_margin": percent(found.rays.success_rate(MARGIN)),
            "fgs_linf": _grey(found.rays, FGS),
            "fgs_linf_float64": _grey(found.precise, FGS),
            "fgs_linf_margin": _grey(found.rays, MARGIN),
            "hc1_rate": percent(found.rays.success_rate(HC1)),
            "hc1_linf": _grey(found.rays, HC1),
        },
        "standing_under_pgd_40": under(found.pgd),
        f"standing_under_{next(iter(found.ensemble.values())).suite}": under(found.ensemble),
        "nearest_wrong_answer": {
            **{f"median_{norm.lower()}": _median(found.minimal, norm) for norm in ("Linf", "L2")},
            "images": len(found.minimal),
        },
    }


def claims(found: dict[str, Found]) -> list[Claim]:
    """What the paper says, what hidden gradients would mean, and whether it held.

    One network each; where BANG is spoken of, its two networks must both fit.
    """
    regular, bang = found[REGULAR], [found[name] for name in BANG]

    def each(value: Callable[[Found], object], names: tuple[str, ...] = (REGULAR, *BANG)) -> str:
        return ", ".join(f"{name} {value(found[name])}" for name in names)

    def rate(one: Found) -> Share:
        return one.rays.success_rate(FGS)

    def twin(one: Found) -> Share:
        return one.precise.success_rate(FGS)

    def margin(one: Found) -> Share:
        return one.rays.success_rate(MARGIN)

    def hot_cold(one: Found) -> float:
        return 255 * one.rays.produced(HC1, "linf")[0]

    def freed(one: Found) -> Share:
        blank = one.rays.survivors(FGS) & (one.rays.attack(FGS)["zero_gradients"] > 0)
        return Share(int((blank & ~one.precise.survivors(FGS)).sum()), int(blank.sum()))

    small, large = RADII
    suite = regular.ensemble[small].suite
    return [
        Claim(
            "All three networks reach an accuracy between 99.0 and 99.4 %",
            all(0.990 <= one.accuracy.value <= 0.994 for one in found.values()),
            each(lambda one: one.accuracy),
            "R0 99.16 %, B0 99.16 %, B4 99.11 %",
        ),
        Claim(
            "FGS on float32 cross-entropy nearly always fails against BANG (success rate below 10 %)",
            all(rate(one).value < 0.10 for one in bang),
            each(rate),
            "R0 90.33 %, B0 3.51 %, B4 1.52 %",
        ),
        Claim(
            "FGS on float32 cross-entropy fails the more often, the stronger BANG: R0, B0, B4 in this order",
            rate(regular).value > rate(bang[0]).value > rate(bang[1]).value,
            each(rate),
            "R0 90.33 %, B0 3.51 %, B4 1.52 %",
        ),
        Claim(
            "HC1 must go further against BANG: its mean Linf grows by at least a third",
            all(hot_cold(one) >= hot_cold(regular) * 4 / 3 for one in bang),
            each(lambda one: f"{hot_cold(one):.1f}") + " grey levels",
            "R0 122.6, B0 187.9, B4 203.5 grey levels",
        ),
        Claim(
            "Hidden: no input gradient that is all zero in float32 is so in float64",
            all(one.precise.zero_gradient_share(FGS).count == 0 for one in found.values()),
            each(
                lambda one: (
                    f"{one.rays.zero_gradient_share(FGS)} in float32, {one.precise.zero_gradient_share(FGS)} in float64"
                )
            ),
        ),
        Claim(
            "Hidden: in float64 the FGS rate of BANG is the regular network's, within 5 points",
            all(abs(twin(one).value - twin(regular).value) <= 0.05 for one in bang),
            each(twin),
        ),
        Claim(
            "Hidden: on the margin loss the FGS rate of BANG is the regular network's, within 5 points",
            all(abs(margin(one).value - margin(regular).value) <= 0.05 for one in bang),
            each(margin),
        ),
        Claim(
            "Hidden: at least 90 % of the FGS attempts against BANG that met a blank gradient succeed in float64",
            all(freed(one).total > 0 and freed(one).value >= 0.9 for one in bang),
            each(freed, BANG),
        ),
        Claim(
            f"Hidden: PGD-40 at Linf {small} turns at least a point more images of BANG's on the margin loss than on "
            "cross-entropy, and not of the regular network's",
            all(_blinded(one, small) for one in bang) and not _blinded(regular, small),
            each(
                lambda one: " / ".join(
                    f"{percent(one.pgd[small].robust_accuracy(rows.name))} %" for rows in one.pgd[small].attacks
                )
            )
            + " stand (cross-entropy / margin)",
        ),
        Claim(
            f"Robust: under {suite} at Linf {small} more images of BANG's stand than of the regular network's",
            all(_outlasts(one.ensemble[small], regular.ensemble[small]) for one in bang),
            each(lambda one: one.ensemble[small].worst_case()),
        ),
        Claim(
            f"No network is robust: under {suite} at Linf {large} less than 1 % stand",
            all((one.ensemble[large].worst_case() or Share(1, 1)).value < 0.01 for one in found.values()),
            each(lambda one: one.ensemble[large].worst_case()),
        ),
        *(
            Claim(
                f"Robust: BANG's nearest wrong answer lies farther away in {norm}",
                all(_farther(one, regular, norm) for one in bang),
                each(lambda one, norm=norm: f"{_median(one.minimal, norm)}")  # type: ignore[misc]
                + " (medians); farther than R0's: "
                + each(lambda one, norm=norm: _pairs(one, regular, norm), BANG),  # type: ignore[misc]
            )
            for norm in ("Linf", "L2")
        ),
    ]


def _blinded(found: Found, eps: float) -> bool:
    """Whether PGD's twin on the margin loss turns more images: by a point, and not by chance."""
    plain, twin = found.pgd[eps].attacks
    return gain(found.pgd[eps], twin, plain) > 0


def _outlasts(one: Evaluation, other: Evaluation) -> bool:
    """Whether more images stand under a suite than of another network: by a point, and not by chance."""
    standing = [np.logical_and.reduce([each.survivors(rows.name) for rows in each.bounded]) for each in (one, other)]
    only_one, only_other = int((standing[0] & ~standing[1]).sum()), int((standing[1] & ~standing[0]).sum())
    enough = only_one - only_other >= 0.01 * len(one)
    return enough and exceeds(only_one, only_one + only_other, 0.5)


def _pairs(one: Found, other: Found, norm: str) -> Share:
    """Of the images that both get right and that lie at different distances, those that lie farther away in the first.

    Where an attack found nothing, the distance is infinite.
    """
    right = one.minimal.right & other.minimal.right
    first, second = one.minimal.distances(norm)[right], other.minimal.distances(norm)[right]
    return Share(int((first > second).sum()), int((first != second).sum()))


def _farther(one: Found, other: Found, norm: str) -> bool:
    pairs = _pairs(one, other, norm)
    return pairs.total > 0 and exceeds(pairs.count, pairs.total, 0.5)


def _median(evaluation: Evaluation, norm: str) -> float | None:
    median = float(np.median(evaluation.distances(norm)))
    return round(median, 4) if np.isfinite(median) else None


def _grey(evaluation: Evaluation, attack: str) -> list[float | None]:
    """Mean and standard deviation of what the attack produced, in grey levels."""
    return [None if np.isnan(value) else round(255 * value, 2) for value in evaluation.produced(attack, "linf")]


def picture(found: dict[str, Found], path: Path) -> None:
    """The share of correctly classified images that each ray has turned, over the radius: a panel per network."""
    with drawing.sheet(path, 9.6, 3.2) as figure:
        panels = figure.subplots(1, len(found), sharey=True)
        for panel, (name, one) in zip(panels, found.items(), strict=True):
            for evaluation, ray, label, colour, dashes in (
                (one.rays, FGS, "cross-entropy, float32 (as published)", drawing.BALANCED, "solid"),
                (one.precise, FGS, "cross-entropy, float64", drawing.REGULAR, "solid"),
                (one.rays, MARGIN, "margin loss, float32", drawing.OTHER, "dashed"),
            ):
                right = evaluation.right
                grey = np.sort(255 * evaluation.distances("Linf", ray)[right])
                turned = 100 * np.searchsorted(grey, np.arange(256) + 0.5) / right.sum()
                panel.plot(np.arange(256), turned, color=colour, linestyle=dashes, label=label)
            panel.set_title(_title(name))
            panel.set_xlabel("radius along the ray (grey levels)")
            panel.set_ylim(0, 101)
        panels[0].set_ylabel("images turned (%)")
        panels[0].legend(loc="lower right", fontsize=8)


def _title(name: str) -> str:
    return {REGULAR: "R0: regular", "B0": "B0: BANG 1.0 / 0.785", "B4": "B4: BANG 1.5 / 0.84"}[name]
