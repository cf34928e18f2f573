"""Does adversarial training gain more from depth than clean training does? (Xie and Yuille.)

All adversarially trained networks of the series end with consistent batch norm. How long that phase lasts in the paper
we do not know; here it is the last fifth of training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bessemer.papers.at_scale import pictures, published
from bessemer.papers.at_scale.carried_out import carried_out
from bessemer.papers.at_scale.compared import claim, difference, share
from bessemer.papers.at_scale.networks import SCALES, Found, Networks, Scale, after, right
from bessemer.papers.bang import drawing
from bessemer.records import Claim
from bessemer.records.evaluation import Column

NAME = "at-scale-depth"


def _wanted(scale: Scale, ends: int, between: int) -> dict[str, int]:
    """How many seeds of each network: the ends of the series are compared, what lies between is looked at."""
    least, most = scale.depths[0], scale.depths[-1]
    seeds = {depth: ends if depth in (least, most) else between for depth in scale.depths}
    series = {f"depth-{depth}{kind}": count for depth, count in seeds.items() for kind in ("", "-clean")}
    return {**series, f"depth-{least}-usual": ends}


WANTED = {
    "smoke": _wanted(SCALES["smoke"], 1, 1),
    "cpu": _wanted(SCALES["cpu"], 3, 1),
    "full": _wanted(SCALES["full"], 3, 3),
}


def claims(found: Networks, scale: Scale) -> list[Claim]:
    """What the paper says of depth, and whether it held between the least and the most layers."""
    longest, least, most = scale.longest, scale.depths[0], scale.depths[-1]
    shallow, deep = found[f"depth-{least}"], found[f"depth-{most}"]
    return [
        claim(
            f"Adversarially trained, {most} layers beat {least} under PGD-{longest}",
            difference(after(deep, longest), after(shallow, longest)),
            "46.7 % with 638 layers, 42.2 % with 152, under PGD-2000",
        ),
        claim(
            f"Cleanly trained, {most} layers beat {least} in clean accuracy",
            difference(right(found[f"depth-{most}-clean"]), right(found[f"depth-{least}-clean"])),
            "~79.7 % with 638 layers, ~79.0 % with 152",
        ),
        claim(
            f"From {least} to {most} layers, adversarial training gains more under PGD-{longest} than clean training "
            "gains in clean accuracy (on the same images)",
            difference(
                _gain(after(deep, longest), after(shallow, longest)),
                _gain(_unattacked(found[f"depth-{most}-clean"]), _unattacked(found[f"depth-{least}-clean"])),
            ),
            "4.5 and ~0.7 points from 152 to 638 layers",
        ),
        claim(
            f"Consistent batch norm at the end of training helps under PGD-{longest} ({least} layers)",
            difference(after(shallow, longest), after(found[f"depth-{least}-usual"], longest)),
            "42.2 % in the depth series and 39.2 % elsewhere, both 152 layers; that this is the reason is our reading",
        ),
    ]


def picture(found: Networks, scale: Scale, path: Path) -> None:
    """Robust and clean accuracy over depth: here and, beside it, published."""
    clean = [share(right(found[f"depth-{depth}-clean"])) for depth in scale.depths]
    robust = [share(after(found[f"depth-{depth}"], scale.longest)) for depth in scale.depths]
    colours = pictures.COLOURS
    with drawing.sheet(path, 10, 3.8) as figure:
        ours, theirs = figure.subplots(1, 2)
        pictures.line(ours, scale.depths, clean, colours[4], "cleanly trained: clean accuracy")
        pictures.line(ours, scale.depths, robust, colours[0], f"adversarially trained: PGD-{scale.longest}")
        for values, shape, label in (
            (published.CLEAN_BY_DEPTH, "o", "published: cleanly trained, clean accuracy"),
            (published.ROBUST_BY_DEPTH, "s", "published: adversarially trained, PGD-2000"),
        ):
            numbers = [published.number(value) for value in values]
            theirs.plot(published.DEPTHS, numbers, "--", marker=shape, color=pictures.PAPER, label=label)
        ours.set_xticks(scale.depths)
        for axes in (ours, theirs):
            axes.set_xlabel("layers")
            axes.set_ylabel("accuracy (%)")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=7, frameon=False)


def _gain(deep: list[Column], shallow: list[Column]) -> list[Column]:
    return [one.astype(float) - other for one, other in zip(deep, shallow, strict=True)]


def _unattacked(seeds: list[Found]) -> list[Column]:
    """Which of the images under the long attack are right when nobody attacks."""
    return [one.unattacked() for one in seeds]


run = partial(carried_out, NAME, WANTED, {}, claims, picture)
