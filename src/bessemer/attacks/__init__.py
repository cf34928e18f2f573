"""Attacks: one file each, one row in `ATTACKS`. An attack sees a callable and gives back images."""

from bessemer.attacks import losses, parts
from bessemer.attacks.apgd import APGD
from bessemer.attacks.attack import Attack, NearestSeen, Oracle, Outcome, WorstSeen, borrowed
from bessemer.attacks.bim import BIM
from bessemer.attacks.bpda import BPDA
from bessemer.attacks.carlini_wagner import CarliniWagner
from bessemer.attacks.ddn import DDN
from bessemer.attacks.deep_fool import DeepFool
from bessemer.attacks.eight_bit import EightBit
from bessemer.attacks.eot import EOT
from bessemer.attacks.fab import FAB
from bessemer.attacks.fgs_line import FGSLine
from bessemer.attacks.fgsm import FGSM
from bessemer.attacks.fgv import FGV
from bessemer.attacks.gaussian_noise import GaussianNoise
from bessemer.attacks.goal import Goal
from bessemer.attacks.gradient_attack import Composed, GradientAttack
from bessemer.attacks.hop_skip_jump import HopSkipJump
from bessemer.attacks.hot_cold import HotCold
from bessemer.attacks.inputs import check_images, check_labels, check_logits
from bessemer.attacks.mifgsm import MIFGSM
from bessemer.attacks.pgd import PGD
from bessemer.attacks.rfgsm import RFGSM
from bessemer.attacks.spatial import Spatial
from bessemer.attacks.spsa import SPSA
from bessemer.attacks.square import Square
from bessemer.attacks.transfer import Transfer
from bessemer.attacks.uniform_noise import UniformNoise
from bessemer.attacks.within import Within
from bessemer.attacks.worst import Worst

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "r-fgsm": RFGSM,
    "bim": BIM,
    "mi-fgsm": MIFGSM,
    "pgd": PGD,
    "gradient": GradientAttack,
    "apgd": APGD,
    "fab": FAB,
    "within": Within,
    "square": Square,
    "spsa": SPSA,
    "deep-fool": DeepFool,
    "ddn": DDN,
    "carlini-wagner": CarliniWagner,
    "fgs-line": FGSLine,
    "fgv": FGV,
    "hot-cold": HotCold,
    "hop-skip-jump": HopSkipJump,
    "gaussian-noise": GaussianNoise,
    "uniform-noise": UniformNoise,
    "spatial": Spatial,
    "transfer": Transfer,
    "worst": Worst,
    "eot": EOT,
    "bpda": BPDA,
    "eight-bit": EightBit,
}

__all__ = [
    "APGD",
    "ATTACKS",
    "BIM",
    "BPDA",
    "DDN",
    "EOT",
    "FAB",
    "FGSM",
    "FGV",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "SPSA",
    "Attack",
    "CarliniWagner",
    "Composed",
    "DeepFool",
    "EightBit",
    "FGSLine",
    "GaussianNoise",
    "Goal",
    "GradientAttack",
    "HopSkipJump",
    "HotCold",
    "NearestSeen",
    "Oracle",
    "Outcome",
    "Spatial",
    "Square",
    "Transfer",
    "UniformNoise",
    "Within",
    "Worst",
    "WorstSeen",
    "borrowed",
    "check_images",
    "check_labels",
    "check_logits",
    "losses",
    "parts",
]
