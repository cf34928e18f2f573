"""Suites: which attacks an evaluation runs. A suite of your own is a `Suite` of attacks with names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bessemer.attacks import (
    APGD,
    DDN,
    FAB,
    FGSM,
    PGD,
    Attack,
    DeepFool,
    FGSLine,
    GaussianNoise,
    GradientAttack,
    HotCold,
    Square,
    Transfer,
    UniformNoise,
    Within,
    parts,
)
from bessemer.attacks.attack import Model
from bessemer.errors import UsageError, unknown
from bessemer.records import BUDGETS
from bessemer.threat import L1, Linf, Threat


@dataclass(frozen=True)
class Suite:
    """What an evaluation runs, cheap attacks first.

    cascade: each attack meets only the images that stood so far, which changes no worst case and spares most of the
    work. curve: the attacks whose robust accuracy is followed over the radius, by name; empty for suites of minimal
    attacks, whose distances are a curve already. pass_scores: whether the perceptual similarity of what was produced is
    measured.
    """

    name: str
    attacks: dict[str, Attack]
    cascade: bool = False
    curve: tuple[str, ...] = ()
    pass_scores: bool = False


def quick(threat: Threat | None) -> Suite:
    """Ten random draws, FGSM, PGD-20, and PGD-20 on the margin loss, which no underflow of the softmax can blind."""
    threat = _needed("quick", threat)
    margin = "PGD-20, margin loss"
    attacks = {
        "noise": GaussianNoise(threat.eps, draws=10, threat=threat),
        "FGSM": FGSM(threat),
        "PGD-20": PGD(threat, steps=20),
        margin: PGD(threat, steps=20, loss="margin"),
    }
    return Suite("quick", attacks, curve=("FGSM", margin))


def standard(threat: Threat | None) -> Suite:
    """The AutoAttack ensemble: APGD on cross-entropy, APGD and FAB towards 9 targets, Square with 5,000 queries.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    2020; for L1 "Mind the box", 2021: five restarts of APGD first, and 5 targets for the second. Square goes through
    the whole of its schedule within its queries; theirs stands still at the half that 5,000 of 10,000 queries reach.
    """
    threat = _needed("standard", threat)
    sparse = isinstance(threat, L1)
    attacks = {
        "APGD-CE": APGD(threat, restarts=5 if sparse else 1),
        "APGD-T": APGD(threat, loss="dlr", targets=5 if sparse else 9),
        "FAB-T": Within(threat, FAB(threat.norm, targets=9)),
        "Square": Square(threat),
    }
    return Suite("standard", attacks, cascade=True)


def checklist(threat: Threat | None, draws: int = 10_000, queries: int = 5_000) -> Suite:
    """What the sanity tests of Carlini et al., "On evaluating adversarial robustness", 2019, compare with one another.

    One step, and PGD with more and more steps and restarts; DDN, which may go any distance; Square, with so many
    queries, and so many random draws, which follow no gradient. The tests are in `bessemer.evaluation.checklist`.
    """
    threat = _needed("checklist", threat)
    margin = "PGD-20, margin loss"
    attacks = {
        "FGSM": FGSM(threat),
        "PGD-20": PGD(threat, steps=20),
        margin: PGD(threat, steps=20, loss="margin"),
        "PGD-100": PGD(threat, steps=100),
        "PGD-200": PGD(threat, steps=200),
        "PGD-20, 10 restarts": PGD(threat, steps=20, restarts=10),
        "PGD-20, 20 restarts": PGD(threat, steps=20, restarts=20),
        "DDN": DDN(loss="margin"),
        "Square": Square(threat, queries),
        "noise": GaussianNoise(threat.eps, draws, threat),
    }
    return Suite("checklist", attacks, curve=("FGSM", margin))


def bang(threat: Threat | None) -> Suite:
    """The attacks of BANG's tables, unbounded, with PASS; and its FGS from a loss that does not underflow.

    The threat, where there is one, has no part in it.
    """
    attacks = {"FGS": FGSLine(), "FGS, margin loss": FGSLine(loss="margin"), "HC1": HotCold(rank=1)}
    return Suite("bang", attacks, pass_scores=True)


def minimal(threat: Threat | None) -> Suite:
    """The nearest wrong answers in the threat's norm (L2 and Linf without a threat): their median, and the curve."""
    by_norm: dict[str, dict[str, Attack]] = {
        "L2": {"DeepFool, L2": DeepFool("L2"), "DDN, L2": DDN(), "FAB, L2": FAB("L2")},
        "Linf": {"DeepFool, Linf": DeepFool("Linf"), "FAB, Linf": FAB("Linf")},
        "L1": {"FAB, L1": FAB("L1")},
    }
    norms = ("L2", "Linf") if threat is None else (threat.norm,)
    suite = "minimal" if threat is None else f"minimal-{threat.norm}"
    return Suite(suite, {name: attack for norm in norms for name, attack in by_norm[norm].items()})


def pgd_curve(threat: Threat | None, targeted: bool = True) -> Suite:
    """PGD of 10, 20, 30, 50, … 2,000 steps towards a random other class, or away from the label: is there a plateau?

    Xie and Yuille, "Intriguing properties of adversarial training at scale", 2020: Linf 16/255, steps of
    max(1/255, eps / steps) from a random start. In other norms than Linf a step is at least a 16th of the radius.

    Runs whose steps are equally long are one run, stopped sooner or later, so only the budgets with longer steps (at
    16/255 that of 10) are attacks of their own; `Evaluation.over_budgets` reads the others off the longest. There an
    image counts as fallen from the first step that fools the model on; where the paper looks at the last step alone,
    it may have stood again.
    """
    name = "pgd-curve" if targeted else "pgd-curve-untargeted"
    threat = _needed(name, threat)
    least = 1 / 255 if isinstance(threat, Linf) else threat.eps / 16
    aim = parts.RandomClass() if targeted else parts.AsAsked()
    attacks: dict[str, Attack] = {
        f"PGD-{steps}": GradientAttack(threat, steps, aim=aim, step_size=parts.AtLeast(least))
        for steps in BUDGETS
        if steps == max(BUDGETS) or threat.eps / steps > least
    }
    return Suite(name, attacks)


def noise(threat: Threat | None) -> Suite:
    """Gaussian noise of growing size, the worst of ten draws each; with a threat, a hundred draws from its ball too."""
    attacks: dict[str, Attack] = {
        f"Gaussian, {level} grey levels": GaussianNoise(level / 255, draws=10) for level in (8, 16, 32, 64, 100)
    }
    if threat is not None:
        attacks["uniform in the ball"] = UniformNoise(threat, draws=100)
    return Suite("noise", attacks)


SUITES: dict[str, Callable[[Threat | None], Suite]] = {
    "quick": quick,
    "standard": standard,
    "checklist": checklist,
    "minimal": minimal,
    "bang": bang,
    "pgd-curve": pgd_curve,
    "noise": noise,
}


def named(name: str, threat: Threat | None) -> Suite:
    """The suite of that name. Raises `UsageError` for an unknown name, or where it needs a threat and has none."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name](threat)


def through(suite: Suite, attacked: Model) -> Suite:
    """The same attacks, searching on another model than the one that is judged.

    For the branches of a mixture norm, say: what is made through one may fool the other. Curves are left out.
    """
    attacks: dict[str, Attack] = {name: Transfer(attack, attacked) for name, attack in suite.attacks.items()}
    return replace(suite, attacks=attacks, curve=())


def _needed(name: str, threat: Threat | None) -> Threat:
    if threat is None:
        raise UsageError(f"the suite {name} needs a threat, such as Linf:8/255")
    return threat
