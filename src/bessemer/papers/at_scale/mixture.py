"""Mixture batch norm: clean and adversarial images through batch norms of their own.

Beside Xie and Yuille: which part of a branch does the work (C. Zhang et al., "Towards understanding dual BN in hybrid
adversarial training", arXiv:2403.19150), group norm, and what an attack through one branch does to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bessemer.evaluation import Stage
from bessemer.papers.at_scale import networks, pictures
from bessemer.papers.at_scale.carried_out import carried_out
from bessemer.papers.at_scale.compared import claim, difference, share
from bessemer.papers.at_scale.networks import SCALES, Networks, Scale, Work, after, right
from bessemer.papers.at_scale.published import MIXTURE
from bessemer.papers.bang import drawing
from bessemer.records import Claim, Result
from bessemer.records.evaluation import Column
from bessemer.training import Moment

NAME = "at-scale-mbn"
PURE, MIXED, MIXTURE_NORM, CLEAN_BRANCH = "share-0", "share-100", "mixture", "mixture/clean"
STATISTICS, AFFINE = "mixture-statistics", "mixture-affine"
GROUP, GROUP_MIXED = "group-0", "group-100"
WANTED = {
    "smoke": dict.fromkeys(("clean", PURE, MIXED, MIXTURE_NORM, CLEAN_BRANCH), 1),
    "cpu": {
        **dict.fromkeys(("clean", PURE, MIXED, MIXTURE_NORM, CLEAN_BRANCH), 3),
        **dict.fromkeys((STATISTICS, AFFINE, GROUP, GROUP_MIXED), 1),
    },
    "full": dict.fromkeys(
        ("clean", PURE, MIXED, MIXTURE_NORM, CLEAN_BRANCH, STATISTICS, AFFINE, GROUP, GROUP_MIXED), 3
    ),
}
NEAR = 0.03  # what "as good as" allows: three points
HARDLY = 0.05  # what "almost none" allows
Pairs = Mapping[tuple[str, str], list[Column]]  # (predicting, attacked) branch: which images stand, a column per seed


def run(
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
) -> Result:
    """As `carried_out`; and the four pairs of an attacked and a predicting branch."""
    where = (runs, data_dir, watch_training, watch_evaluation)
    result = carried_out(NAME, WANTED, MIXTURE, claims, picture, scale, *where)
    work = Work(SCALES[scale], *where)
    found = pairs(work, WANTED[scale][MIXTURE_NORM])
    figures = {
        f"{predicting} branch predicts, {attacked} branch attacked": [
            round(100 * float(one.mean()), 2) for one in seeds
        ]
        for (predicting, attacked), seeds in found.items()
    }
    steps = work.scale.between
    return replace(
        result,
        claims=[*result.claims, *transfer_claims(found, steps)],
        numbers={**result.numbers, "pairs": {"steps": steps, **figures}},
    )


def pairs(work: Work, seeds: int) -> dict[tuple[str, str], list[Column]]:
    """Which images stand, for each predicting and each attacked branch, after as many steps in all four cases."""
    made: dict[tuple[str, str], list[Column]] = {}
    for predicting in ("adversarial", "clean"):
        for attacked in ("adversarial", "clean"):
            if predicting == attacked:
                view = MIXTURE_NORM if predicting == "adversarial" else CLEAN_BRANCH
                own = networks.found(work, {view: seeds})[view]
                made[predicting, attacked] = after(own, work.scale.between)
            else:
                made[predicting, attacked] = [
                    networks.transferred(work, MIXTURE_NORM, seed, predicting, attacked) for seed in range(seeds)
                ]
    return made


def claims(found: Networks, scale: Scale) -> list[Claim]:
    """What the papers say of mixture norm, and whether it held."""
    longest = scale.longest
    branch = after(found[MIXTURE_NORM], longest)
    made = [
        claim(
            f"The mixture norm's adversarial branch beats one norm for the same images under PGD-{longest}",
            difference(branch, after(found[MIXED], longest)),
            "38.3 and 20.9 % under PGD-2000",
        ),
        claim(
            f"It wins back what clean images cost: at most three points below training without them, PGD-{longest}",
            difference(branch, after(found[PURE], longest)),
            "38.3 and 39.2 % under PGD-2000",
            beyond=-NEAR,
        ),
        claim(
            "Its clean branch is as accurate as a network trained on clean images: at most three points below",
            difference(right(found[CLEAN_BRANCH]), right(found["clean"])),
            "79.3 and 78.9 %",
            beyond=-NEAR,
        ),
    ]
    clean = share(after(found[CLEAN_BRANCH], longest))
    made.append(
        Claim(
            f"The clean branch has almost no robustness: less than 5 % stand under PGD-{longest}",
            clean.verdict(HARDLY) == "below",
            f"{clean.level()} %, {clean.verdict(HARDLY)} {100 * HARDLY:g} %",
        )
    )
    if AFFINE in found and STATISTICS in found:
        made.append(
            claim(
                f"Separate gamma and beta alone do more for the adversarial branch than separate statistics alone, "
                f"PGD-{longest}",
                difference(after(found[AFFINE], longest), after(found[STATISTICS], longest)),
                "Zhang et al.: the affine part does most of the work",
            )
        )
    if GROUP in found and GROUP_MIXED in found:
        cost = {
            name: [
                one.astype(float) - other
                for one, other in zip(after(found[without], longest), after(found[within], longest), strict=True)
            ]
            for name, without, within in (("batch", PURE, MIXED), ("group", GROUP, GROUP_MIXED))
        }
        made.append(
            claim(
                f"Clean images in the batch cost less with group norm than with batch norm, PGD-{longest}",
                difference(cost["batch"], cost["group"]),
                "said, without a figure that we could confirm",
            )
        )
    return made


def transfer_claims(found: Pairs, steps: int) -> list[Claim]:
    """Ours: an attack has to search through the branch that predicts."""
    return [
        claim(
            f"Ours, not the paper's: through the wrong branch an attack misses the {branch} one (PGD-{steps}: stand "
            "when the other branch is attacked, over its own)",
            difference(found[branch, other], found[branch, branch]),
        )
        for branch, other in (("adversarial", "clean"), ("clean", "adversarial"))
    ]


def picture(found: Networks, scale: Scale, path: Path) -> None:
    """Curves over the attack's steps; robust against clean accuracy."""
    own = pictures.look(found, scale)
    with drawing.sheet(path, 13, 4.2) as figure:
        over_steps, beside = figure.subplots(1, 2)
        shown = {name: found[name] for name in (PURE, MIXED, MIXTURE_NORM, CLEAN_BRANCH)}
        pictures.curves(over_steps, shown, scale.steps, MIXTURE, own)
        pictures.trade_off(beside, found, scale.longest, own)
