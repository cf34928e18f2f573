"""What the papers print. `~` stands before figures that were read off a plot, to within about 0.7 points.

Accuracy in % on ImageNet, so that ours are beside, not against them: C. Xie and A. Yuille, "Intriguing properties of
adversarial training at scale" (arXiv:1906.03787), ResNet-152, eps 16/255, PGD towards a random class; C. Xie et al.,
"Feature denoising for improving adversarial robustness" (arXiv:1812.03411), and the figures beside its code, likewise;
AdvProp (arXiv:1911.09665): a re-implementation's ResNet-50.
"""

from __future__ import annotations

from bessemer.records import BUDGETS

Printed = dict[str, str]  # by what was measured: `clean`, or a number of steps


def _curve(*values: str) -> Printed:
    return dict(zip(map(str, BUDGETS), values, strict=True))


PURE = _curve("~52.5", "~50.0", "~46.3", "~43.9", "~41.7", "~40.4", "39.6", "38.9", "39.2")
MIXED = _curve("~56.2", "~53", "~47.3", "~41.3", "~35.6", "~31.3", "26.6", "23.5", "20.9")
PAIRED = _curve("~48.8", "~46.5", "~42", "~38.5", "~34.1", "~30.8", "27.3", "25.2", "23.0")

RATIO: dict[str, Printed] = {
    "share-0": {"clean": "62.1", **PURE},
    "share-20": {"2000": "~32.1"},
    "share-40": {"2000": "~29.1"},
    "share-60": {"2000": "~15.3"},
    "share-80": {"2000": "~20.3"},
    "share-100": MIXED,
}
MIXTURE: dict[str, Printed] = {
    "clean": {"clean": "78.9"},
    "share-0": RATIO["share-0"],
    "share-100": MIXED,
    "mixture": {"2000": "38.3"},
    "mixture/clean": {"clean": "79.3"},
}
PAIRING: dict[str, Printed] = {
    **MIXTURE,
    "pairing": PAIRED,
    "pairing-mixture": {"2000": "35.3"},
    "pairing-mixture/clean": {"clean": "78.4"},
}
DENOISING: dict[str, Printed] = {
    "share-0": {"clean": "62.3", "10": "52.5", "100": "41.7", "1000": "39.0"},
    "denoise-gaussian": {"clean": "65.3", "10": "55.7", "100": "45.5", "1000": "42.8", "2000": "42.6"},
}
ADVPROP: dict[str, Printed] = {"clean": {"clean": "76.67"}, "advprop-weak": {"clean": "77.42"}}

DEPTHS = (152, 200, 338, 518, 638)
ROBUST_BY_DEPTH = ("42.2", "~43.8", "~44.6", "~46.2", "46.7")  # PGD-2000
CLEAN_BY_DEPTH = ("~79.0", "~79.3", "~79.5", "~79.8", "~79.7")  # other networks: cleanly trained


def number(printed: str) -> float:
    """A printed figure, for a picture."""
    return float(printed.removeprefix("~"))
