"""Feature denoising blocks (C. Xie et al., arXiv:1812.03411), one filter at a time.

A block ends every stage but the first, whose maps are as large as the images: there the Gaussian filter alone would
take several times the work of the whole network. Without clean images in training, as in the paper.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bessemer.papers.at_scale import pictures
from bessemer.papers.at_scale.carried_out import carried_out
from bessemer.papers.at_scale.compared import Estimate, claim, difference
from bessemer.papers.at_scale.networks import Networks, Scale, after, right
from bessemer.papers.at_scale.published import DENOISING
from bessemer.papers.bang import drawing
from bessemer.records import Claim

NAME = "at-scale-denoise"
NONE = "share-0"
FILTERS = ("gaussian", "dot-product", "bilateral", "mean", "median")
GLOBAL = FILTERS[:2]  # every position sees every other
_ALL = (NONE, *(f"denoise-{filter}" for filter in FILTERS))
WANTED = {
    "smoke": dict.fromkeys((NONE, "denoise-dot-product", "denoise-mean"), 1),
    "cpu": dict.fromkeys(_ALL, 1),
    "full": dict.fromkeys(_ALL, 3),
}


def claims(found: Networks, scale: Scale) -> list[Claim]:
    """Whether each filter helps, and whether the filters that see the whole map help most."""
    longest, none = scale.longest, found[NONE]
    present = [filter for filter in FILTERS if f"denoise-{filter}" in found]

    def gain(filter: str) -> Estimate:
        return difference(after(found[f"denoise-{filter}"], longest), after(none, longest))

    made = [
        claim(
            f"The {filter} block helps under PGD-{longest}",
            gain(filter),
            "42.8 and 39.0 % under PGD-1000" if filter == "gaussian" else "",
        )
        for filter in present
    ]
    if "gaussian" in present:
        made.append(
            claim(
                "The gaussian block helps clean accuracy, too",
                difference(right(found["denoise-gaussian"]), right(none)),
                "65.3 and 62.3 %",
            )
        )
    order = sorted(present, key=lambda filter: -gain(filter).value)
    best, rest = order[0], [filter for filter in present if filter not in GLOBAL]
    ahead = [
        difference(after(found[f"denoise-{best}"], longest), after(found[f"denoise-{filter}"], longest))
        for filter in rest
    ]
    made.append(
        Claim(
            "A filter that sees the whole map does best, and better than every local one",
            best in GLOBAL and all(one.verdict() == "above" for one in ahead),
            f"in this order: {', '.join(order)}; {best} over "
            + ", ".join(f"{filter} {one.told()}" for filter, one in zip(rest, ahead, strict=True) if filter != best),
            "the non-local filters do best; figures of the others could not be confirmed",
        )
    )
    return made


def picture(found: Networks, scale: Scale, path: Path) -> None:
    """Curves over the attack's steps; robust against clean accuracy."""
    own = pictures.look(found, scale, **{NONE: "no denoising"})
    with drawing.sheet(path, 13, 4.2) as figure:
        over_steps, beside = figure.subplots(1, 2)
        pictures.curves(over_steps, found, scale.steps, DENOISING, own)
        pictures.trade_off(beside, found, scale.longest, own)


run = partial(carried_out, NAME, WANTED, DENOISING, claims, picture)
