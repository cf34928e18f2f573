"""How many clean images belong into adversarial training, and how long an attack must be to tell.

Xie and Yuille: mixing in clean images looks better under a short attack and is far worse under a long one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bessemer.papers.at_scale import pictures
from bessemer.papers.at_scale.carried_out import carried_out
from bessemer.papers.at_scale.compared import claim, difference, share
from bessemer.papers.at_scale.networks import Networks, Scale, after, lost, right
from bessemer.papers.at_scale.published import RATIO, number
from bessemer.papers.bang import drawing
from bessemer.records import Claim

NAME = "at-scale-ratio"
PURE, MIXED, WORST = "share-0", "share-100", "share-60"
# the seeds of each network; the middle of the curve is looked at, its ends are compared
WANTED = {
    "smoke": {PURE: 2, MIXED: 1},
    "cpu": {PURE: 3, MIXED: 3, "share-20": 1, "share-40": 1, WORST: 1, "share-80": 1},
    "full": {f"share-{percent}": 3 for percent in (0, 100, 20, 40, 60, 80)},
}


def claims(found: Networks, scale: Scale) -> list[Claim]:
    """What the paper says of the mixing ratio, and whether it held."""
    longest, short = scale.longest, scale.steps[0]
    pure, mixed = found[PURE], found[MIXED]
    late = difference(after(pure, longest), after(mixed, longest))
    early = difference(after(mixed, short), after(pure, short))
    made = [
        claim(
            f"Training without clean images beats the 1 : 1 mix under PGD-{longest}",
            late,
            "39.2 and 20.9 % under PGD-2000: +18.3 points",
        ),
        claim(
            f"Under PGD-{short} the mix looks better than training without clean images",
            early,
            "~56.2 and ~52.5 % under PGD-10",
        ),
        Claim(
            f"So the ranking reverses between PGD-{short} and PGD-{longest}",
            late.verdict() == "above" and early.verdict() == "above",
            f"mix over pure {early.told()} under PGD-{short}; pure over mix {late.told()} under PGD-{longest}",
            "reverses between PGD-30 and PGD-50",
        ),
        claim(
            f"The mix loses more between PGD-{short} and PGD-{longest} than training without clean images does",
            difference(lost(mixed, short, longest), lost(pure, short, longest)),
            "~35.3 and ~13.3 points",
        ),
    ]
    if WORST in found:
        made.append(
            claim(
                f"The curve over the clean share is not monotone: 60 % is worse than 100 % under PGD-{longest}",
                difference(after(mixed, longest), after(found[WORST], longest)),
                "~15.3 and 20.9 % under PGD-2000",
            )
        )
    if "share-20" in found:
        made.append(
            claim(
                f"A fifth of clean images costs robustness already, under PGD-{longest}",
                difference(after(pure, longest), after(found["share-20"], longest)),
                "39.2 and ~32.1 % under PGD-2000",
            )
        )
    made.append(
        claim(
            "Ours, not the paper's: what the mix gains for it is clean accuracy",
            difference(right(mixed), right(pure)),
        )
    )
    return made


def picture(found: Networks, scale: Scale, path: Path) -> None:
    """The two curves over the attack's steps, and everything over the clean share."""
    own = pictures.look(found, scale)
    printed = sorted((int(name.removeprefix("share-")), number(row["2000"])) for name, row in RATIO.items())
    with drawing.sheet(path, 11, 4) as figure:
        over_steps, over_share = figure.subplots(1, 2)
        pictures.curves(over_steps, {name: found[name] for name in (PURE, MIXED)}, scale.steps, RATIO, own)
        shares = sorted(int(name.removeprefix("share-")) for name in found)
        ordered = [found[f"share-{percent}"] for percent in shares]
        clean = [share(right(seeds)) for seeds in ordered]
        pictures.line(over_share, shares, clean, pictures.COLOURS[4], "clean")
        for colour, steps in zip(pictures.COLOURS, (scale.steps[0], scale.longest), strict=False):
            estimates = [share(after(seeds, steps)) for seeds in ordered]
            pictures.line(over_share, shares, estimates, colour, f"PGD-{steps}")
        label = "published, PGD-2000"
        over_share.plot(*zip(*printed, strict=True), "--s", color=pictures.PAPER, markersize=4, label=label)
        over_share.set_xlabel("clean images, % of the adversarial ones")
        over_share.set_ylabel("accuracy (%)")
        over_share.set_ylim(bottom=0)
        over_share.legend(fontsize=7, frameon=False)


run = partial(carried_out, NAME, WANTED, RATIO, claims, picture)
