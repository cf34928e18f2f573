"""AdvProp (C. Xie et al., arXiv:1911.09665): do adversarial images improve accuracy on clean ones?

They do, it says, if they go through batch norms of their own, and harm otherwise. Two strengths: 1/255 in one step,
that of the re-implementation whose figures stand beside ours, and 4/255 in five.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bessemer.papers.at_scale import pictures
from bessemer.papers.at_scale.carried_out import carried_out
from bessemer.papers.at_scale.compared import claim, difference, share
from bessemer.papers.at_scale.networks import NOISE, Networks, Scale, right
from bessemer.papers.at_scale.published import ADVPROP
from bessemer.papers.bang import drawing
from bessemer.records import Claim
from bessemer.records.evaluation import Column

NAME = "advprop"
CLEAN, STRONG, WEAK, SINGLE = "clean", "advprop", "advprop-weak", "advprop-single"
_ALL = (CLEAN, STRONG, WEAK, SINGLE)
WANTED = {"smoke": dict.fromkeys(_ALL, 1), "cpu": dict.fromkeys(_ALL, 3), "full": dict.fromkeys(_ALL, 3)}


def claims(found: Networks, scale: Scale) -> list[Claim]:
    """What the paper says, and whether it held."""
    level = NOISE[1]
    clean, single = right(found[CLEAN]), right(found[SINGLE])

    def shaken(name: str) -> list[Column]:
        return [one.shaken(level) for one in found[name]]

    return [
        claim(
            "AdvProp at 1/255 is more accurate on clean images than training on clean images alone",
            difference(right(found[WEAK]), clean),
            "77.42 and 76.67 % (ResNet-50)",
        ),
        claim(
            "So is AdvProp at 4/255",
            difference(right(found[STRONG]), clean),
            "84.3 and 85.2 % (EfficientNet-B7 with AutoAugment, the former without its held-out images)",
        ),
        claim(
            "The same images through one norm harm: AdvProp at 4/255 is more accurate",
            difference(right(found[STRONG]), single),
        ),
        claim(
            "And clean training is more accurate than the same images through one norm",
            difference(clean, single),
        ),
        claim(
            f"AdvProp at 4/255 holds more often under Gaussian noise of {level} grey levels than clean training",
            difference(shaken(STRONG), shaken(CLEAN)),
            "another measure: +6.5 points on ImageNet-C (EfficientNet-B7)",
        ),
    ]


def picture(found: Networks, scale: Scale, path: Path) -> None:
    """Clean accuracy, and accuracy over the noise."""
    own = pictures.look(found, scale)
    with drawing.sheet(path, 11, 3.8) as figure:
        clean, noisy = figure.subplots(1, 2)
        pictures.bars(clean, found, own)
        for name, seeds in found.items():
            shaken = [share([one.shaken(level) for one in seeds]) for level in NOISE]
            pictures.line(noisy, (0, *NOISE), [share(right(seeds)), *shaken], *own[name])
        noisy.set_xlabel("Gaussian noise (standard deviation, grey levels)")
        noisy.set_ylabel("accuracy (%)")
        noisy.legend(fontsize=7, frameon=False)


run = partial(carried_out, NAME, WANTED, ADVPROP, claims, picture, climb=False)
