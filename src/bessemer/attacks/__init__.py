"""Attacks: one file each, one row in `ATTACKS`. An attack sees a callable and gives back images."""

from bessemer.attacks.attack import LOSSES, Attack, Goal, Oracle, Outcome, borrowed
from bessemer.attacks.fgs_line import FGSLine
from bessemer.attacks.fgsm import FGSM
from bessemer.attacks.gaussian_noise import GaussianNoise
from bessemer.attacks.hot_cold import HotCold
from bessemer.attacks.inputs import check_images, check_labels, check_logits
from bessemer.attacks.pgd import PGD

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "fgs-line": FGSLine,
    "hot-cold": HotCold,
    "gaussian-noise": GaussianNoise,
}

__all__ = [
    "ATTACKS",
    "FGSM",
    "LOSSES",
    "PGD",
    "Attack",
    "FGSLine",
    "GaussianNoise",
    "Goal",
    "HotCold",
    "Oracle",
    "Outcome",
    "borrowed",
    "check_images",
    "check_labels",
    "check_logits",
]
