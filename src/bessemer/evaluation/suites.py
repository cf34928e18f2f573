"""Named sets of attacks. A suite is a function from a threat to attacks by name, cheap first; one row in `SUITES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bessemer.attacks import FGSM, PGD, Attack, FGSLine, GaussianNoise, HotCold
from bessemer.errors import UsageError, unknown
from bessemer.threat import Threat


@dataclass(frozen=True)
class Suite:
    """What an evaluation runs.

    curve: the attack whose robust accuracy is followed over the radius, by name; empty for suites of minimal attacks,
    whose distances are a curve already. pass_scores: whether the perceptual similarity of what was produced is
    measured.
    """

    name: str
    attacks: dict[str, Attack]
    curve: str = ""
    pass_scores: bool = False


def quick(threat: Threat | None) -> Suite:
    """Ten random draws, FGSM, PGD-20, and PGD-20 on the margin loss, which no underflow of the softmax can blind."""
    if threat is None:
        raise UsageError("the suite quick needs a threat, such as Linf:8/255")
    margin = "PGD-20, margin loss"
    attacks = {
        "noise": GaussianNoise(threat.eps, draws=10, threat=threat),
        "FGSM": FGSM(threat),
        "PGD-20": PGD(threat, steps=20),
        margin: PGD(threat, steps=20, loss="margin"),
    }
    return Suite("quick", attacks, curve=margin)


def bang(threat: Threat | None) -> Suite:
    """The attacks of BANG's tables, unbounded, with PASS; and its FGS from a loss that does not underflow.

    The threat, where there is one, has no part in it.
    """
    attacks = {"FGS": FGSLine(), "FGS, margin loss": FGSLine(loss="margin"), "HC1": HotCold(rank=1)}
    return Suite("bang", attacks, pass_scores=True)


SUITES: dict[str, Callable[[Threat | None], Suite]] = {"quick": quick, "bang": bang}


def named(name: str, threat: Threat | None) -> Suite:
    """The suite of that name. Raises `UsageError` for an unknown name, or where it needs a threat and has none."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name](threat)
