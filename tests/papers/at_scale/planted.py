"""Networks that nobody trained: as many images stand as a test asks for, always the first ones."""

import numpy as np

from bessemer.papers.at_scale.networks import NOISE, Found
from bessemer.records import COLUMNS, AttackRows, Evaluation

IMAGES = 500


def evaluation(right, attacks, suite, threat=""):
    """right: of clean images. attacks: by name, which images stand, and the forward passes of each."""
    n = len(right)
    rows = []
    for name, (stands, forwards) in attacks.items():
        columns = {column: np.zeros(n, kind) for column, kind in COLUMNS.items()}
        columns["prediction"] = np.where(stands, 0, 1)
        columns["forwards"] = np.array(forwards, np.int64)
        rows.append(AttackRows(name, f"{name}()", "bounded" if threat else "random", threat, columns))
    label = np.zeros(n, np.int64)
    prediction = np.where(right, label, 1)
    return Evaluation("planted", "none", suite, threat, 0, ["0", "1"], np.arange(n), label, prediction, rows)


def network(clean, curve=None, noise=None, images=IMAGES):
    """Shares in %: of clean images, after so many steps ({10: …, 2000: …}, falling), under noise."""
    place = 100 * (np.arange(images) + 0.5) / images
    noise = clean if noise is None else noise
    shaken = {f"Gaussian, {level} grey levels": (place < noise, np.ones(images)) for level in NOISE}
    calm = evaluation(place < clean, shaken, "clean-and-noise")
    if curve is None:
        return Found(calm)
    longest = max(curve)
    fell = np.full(images, longest)  # with the last look
    for steps in sorted(curve, reverse=True):
        fell[place >= curve[steps]] = steps
    attack = {f"PGD-{longest}": (place < curve[longest], fell + 1)}
    return Found(calm, evaluation(place < clean, attack, "pgd-curve-untargeted", "Linf:8/255"))
