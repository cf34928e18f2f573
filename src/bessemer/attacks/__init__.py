"""Attacks: one file each, one row in `ATTACKS`. An attack sees a callable and gives back images."""

from bessemer.attacks import losses, parts
from bessemer.attacks.attack import Attack, NearestSeen, Oracle, Outcome, WorstSeen, borrowed
from bessemer.attacks.bim import BIM
from bessemer.attacks.fgs_line import FGSLine
from bessemer.attacks.fgsm import FGSM
from bessemer.attacks.gaussian_noise import GaussianNoise
from bessemer.attacks.goal import Goal
from bessemer.attacks.gradient_attack import Composed, GradientAttack
from bessemer.attacks.hot_cold import HotCold
from bessemer.attacks.inputs import check_images, check_labels, check_logits
from bessemer.attacks.mifgsm import MIFGSM
from bessemer.attacks.pgd import PGD
from bessemer.attacks.rfgsm import RFGSM

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "r-fgsm": RFGSM,
    "bim": BIM,
    "mi-fgsm": MIFGSM,
    "pgd": PGD,
    "fgs-line": FGSLine,
    "hot-cold": HotCold,
    "gaussian-noise": GaussianNoise,
}

__all__ = [
    "ATTACKS",
    "BIM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "Attack",
    "Composed",
    "FGSLine",
    "GaussianNoise",
    "Goal",
    "GradientAttack",
    "HotCold",
    "NearestSeen",
    "Oracle",
    "Outcome",
    "WorstSeen",
    "borrowed",
    "check_images",
    "check_labels",
    "check_logits",
    "losses",
    "parts",
]
