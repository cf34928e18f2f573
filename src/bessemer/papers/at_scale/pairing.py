"""Adversarial logit pairing (H. Kannan et al., arXiv:1803.06373), as Xie and Yuille judge it (section 4).

They find that it helps where clean and adversarial images share their norms, and harms where they do not; its own paper
judged it by short attacks.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bessemer.papers.at_scale import pictures
from bessemer.papers.at_scale.carried_out import carried_out
from bessemer.papers.at_scale.compared import claim, difference
from bessemer.papers.at_scale.networks import Networks, Scale, after, lost, right
from bessemer.papers.at_scale.published import PAIRING
from bessemer.papers.bang import drawing
from bessemer.records import Claim

NAME = "at-scale-alp"
PURE, MIXED, MIXTURE_NORM, CLEAN_BRANCH = "share-0", "share-100", "mixture", "mixture/clean"
PAIRED, PAIRED_MIXTURE, PAIRED_CLEAN = "pairing", "pairing-mixture", "pairing-mixture/clean"
_ALL = (PURE, MIXED, PAIRED, MIXTURE_NORM, CLEAN_BRANCH, PAIRED_MIXTURE, PAIRED_CLEAN)
WANTED = {"smoke": dict.fromkeys(_ALL, 1), "cpu": dict.fromkeys(_ALL, 3), "full": dict.fromkeys(_ALL, 3)}


def claims(found: Networks, scale: Scale) -> list[Claim]:
    """What Xie and Yuille say of logit pairing, and whether it held."""
    longest, short = scale.longest, scale.steps[0]
    return [
        claim(
            f"With one norm, logit pairing helps a little under PGD-{longest}",
            difference(after(found[PAIRED], longest), after(found[MIXED], longest)),
            "23.0 and 20.9 % under PGD-2000",
        ),
        claim(
            f"Under PGD-{short} it looks worse than the mix without it",
            difference(after(found[MIXED], short), after(found[PAIRED], short)),
            "~48.8 and ~56.2 % under PGD-10",
        ),
        claim(
            f"With mixture norm it harms the adversarial branch, PGD-{longest}",
            difference(after(found[MIXTURE_NORM], longest), after(found[PAIRED_MIXTURE], longest)),
            "35.3 and 38.3 % under PGD-2000",
        ),
        claim(
            "With mixture norm it harms the clean branch, too",
            difference(right(found[CLEAN_BRANCH]), right(found[PAIRED_CLEAN])),
            "78.4 and 79.3 %",
        ),
        claim(
            f"Logit pairing does not replace leaving clean images out: that does better under PGD-{longest}",
            difference(after(found[PURE], longest), after(found[PAIRED], longest)),
            "39.2 and 23.0 % under PGD-2000",
        ),
        claim(
            f"Its accuracy falls further between PGD-{short} and PGD-{longest} than that of training without clean "
            "images",
            difference(lost(found[PAIRED], short, longest), lost(found[PURE], short, longest)),
            "~25.8 and ~13.3 points",
        ),
    ]


def picture(found: Networks, scale: Scale, path: Path) -> None:
    """Curves over the attack's steps; robust against clean accuracy."""
    own = pictures.look(found, scale)
    with drawing.sheet(path, 13, 4.2) as figure:
        over_steps, beside = figure.subplots(1, 2)
        shown = {name: found[name] for name in (PURE, MIXED, PAIRED, MIXTURE_NORM, PAIRED_MIXTURE)}
        pictures.curves(over_steps, shown, scale.steps, PAIRING, own)
        pictures.trade_off(beside, found, scale.longest, own)


run = partial(carried_out, NAME, WANTED, PAIRING, claims, picture)
