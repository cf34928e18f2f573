"""Runs that nobody trained: real digits, made-up predictions, every part of a record filled in."""

import numpy as np
from sklearn.datasets import load_digits

from bessemer.records import COLUMNS, AttackRows, Curve, Evaluation, Exhibit, Finding, RunRecord

IMAGES = 200
PROVENANCE = {
    "command": "bessemer evaluate runs/NAME --suite quick",
    "commit": "0123456789ab",
    "versions": {"python": "3.12.3", "bessemer": "0.1.0", "torch": "2.13.0"},
    "hardware": {"system": "Linux x86_64", "processor": "A processor", "cores": 2},
    "time": "2026-01-01T00:00:00+00:00",
    "seed": 0,
    "seconds": 83.2,
    "device": "cpu",
    "threads": 2,
}
ATTACKS = [
    ("FGSM", "FGSM(threat=Linf(eps=0.1))", "bounded", "Linf:0.1"),
    ("PGD-20", "PGD(threat=Linf(eps=0.1), steps=20)", "bounded", "Linf:0.1"),
    ("HotCold", "HotCold(rank=1)", "minimal", ""),
]
# the share of right images that each attack leaves right
SURVIVING = {"regular": (0.35, 0.1, 0.0), "bang": (0.8, 0.55, 0.05), "adversarial": (0.85, 0.75, 0.0)}
EPS = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
CURVES = {
    "regular": [0.97, 0.8, 0.4, 0.1, 0.02, 0.0, 0.0],
    "bang": [0.965, 0.9, 0.75, 0.55, 0.48, 0.45, 0.44],
    "adversarial": [0.955, 0.93, 0.87, 0.73, 0.52, 0.3, 0.08],
}


def rows(name, call, kind, threat, label, prediction, surviving, random, pass_score=0.6):
    """Rows in which the first `surviving` share of the right images stays right."""
    right = np.flatnonzero(prediction == label)
    kept = right[: round(surviving * len(right))]
    adversarial = (label + 1) % 10
    adversarial[kept] = label[kept]
    n = len(label)
    linf = np.full(n, 0.1) if kind == "bounded" else random.uniform(0.2, 0.7, n)
    zero = np.zeros(n, np.int64)
    return AttackRows(
        name,
        call,
        kind,
        threat,
        {
            "prediction": adversarial,
            "linf": linf,
            "l2": 4 * linf,
            "l1": 20 * linf,
            "pass_score": np.full(n, np.nan) if kind == "bounded" else random.normal(pass_score, 0.1, n),
            "forwards": zero + 20,
            "backwards": zero + 20,
            "verifications": zero,
            "gradients": zero + 20,
            "zero_gradients": zero,
            "zero_in_float64": zero.astype(bool),
        },
    )


def run(name, classes=tuple("0123456789")):
    """One of the three, by name."""
    random = np.random.default_rng(sum(name.encode()))
    digits = load_digits()
    images = (digits.images[:IMAGES] / 16).astype(np.float32)[:, None]
    label = digits.target[:IMAGES].astype(np.int64)
    prediction = label.copy()
    prediction[-6:] = (label[-6:] + 3) % 10
    attacks = [
        rows(*attack, label, prediction, surviving, random)
        for attack, surviving in zip(ATTACKS, SURVIVING[name], strict=True)
    ]
    if name == "bang":
        for attack in attacks[:2]:
            attack["zero_gradients"][:60] = 3
    gallery = []
    for attack in attacks:
        for index in (3, 12, 150):
            change = random.uniform(-1, 1, (1, 8, 8)) if attack.kind == "minimal" else random.choice([-1, 1], (1, 8, 8))
            adversarial = (images[index] + attack["linf"][index] * change).clip(0, 1).astype(np.float32)
            gallery.append(
                Exhibit(
                    attack.name,
                    index,
                    int(label[index]),
                    int(prediction[index]),
                    int(attack["prediction"][index]),
                    float(np.abs(adversarial - images[index]).max()),
                    float(np.sqrt(((adversarial - images[index]) ** 2).sum())),
                    images[index],
                    adversarial,
                )
            )
    masked = "bang" if name == "bang" else ""
    findings = [
        Finding(
            "gradients that are all zero",
            "doubt" if masked else "trust",
            "29.3 % of images" if masked else "0.0 % of images",
            "the loss underflowed, so a gradient attack did not know where to go"
            if masked
            else "every image gave the attack a direction",
            "attack again with a margin loss, or in float64" if masked else "",
            "PGD-20" if masked else "",
        ),
        Finding(
            "more steps find more",
            "trust",
            "PGD-20 turns 25.0 points more than FGSM",
            "the search is not stuck",
            "",
            "",
        ),
        Finding(
            "the budget was small",
            "note",
            "20 steps",
            "success was still rising at the last step",
            "try PGD with 100 steps and 10 restarts",
            "PGD-20",
        ),
    ]
    level = {"regular": 0.02, "bang": 0.06, "adversarial": 0.2}[name]
    metrics = []
    for iteration in range(100, 2001, 100):
        loss = 2.3 * np.exp(-iteration / 250) + level + 0.02 * random.random()
        metrics.append({"iteration": iteration, "loss": float(loss), "lr": 0.01, "seconds": 1.5})
        if iteration % 200 == 0:
            value = float(0.975 - 0.6 * np.exp(-iteration / 300) - level / 10)
            metrics.append({"iteration": iteration, "validation_loss": 1.2 * float(loss), "validation_accuracy": value})
    evaluation = Evaluation(
        model=name,
        data="digits test",
        suite="quick",
        threat="Linf:0.1",
        seed=0,
        classes=list(classes),
        index=np.arange(IMAGES),
        label=label,
        prediction=prediction,
        attacks=attacks,
        findings=findings,
        curves=[Curve("PGD-20", "Linf", EPS, [round(IMAGES * share) for share in CURVES[name]], IMAGES)],
        gallery=gallery,
        notes={"pass": "11-tap window with reflected borders", "pass_not_aligned": 3},
        provenance={**PROVENANCE, "command": PROVENANCE["command"].replace("NAME", name)},
    )
    method = {"name": name, **({"beta": 1.0, "epsilon": 0.815} if name == "bang" else {})}
    recipe = {
        "model": {"name": "small"},
        "data": {"name": "digits"},
        "method": method,
        "train": {"seed": 0, "steps": 2000},
    }
    return RunRecord(name, recipe, metrics, [evaluation])


def judged(model, label, prediction, attacks, *, suite="own", threat="Linf:0.1", index=None, **more):
    """An evaluation from predictions: `attacks` gives each attack's name, kind, norm and columns.

    What a column leaves out is filled with zeros, what a prediction leaves out is the label.
    """
    label, n = np.array(label, np.int64), len(label)
    rows = []
    for name, (kind, norm, columns) in attacks.items():
        filled = {
            column: np.array(columns.get(column, np.full(n, np.nan) if column == "pass_score" else np.zeros(n)), dtype)
            for column, dtype in COLUMNS.items()
        }
        filled["prediction"] = np.array(columns.get("prediction", label), np.int64)
        rows.append(AttackRows(name, f"{name}()", kind, "" if kind == "minimal" else threat, filled, norm))
    return Evaluation(
        model=model,
        data="made up",
        suite=suite,
        threat=threat if any(rows_.threat for rows_ in rows) else "",
        seed=0,
        classes=[f"class {number}" for number in range(10)],
        index=np.arange(n) if index is None else np.array(index),
        label=label,
        prediction=np.array(prediction, np.int64),
        attacks=rows,
        **more,
    )


def exhibit(attack, index, label, prediction, adversarial_prediction, side=8):
    """A picture of an image that nobody drew; its pixels depend on the index alone."""
    original = np.random.default_rng(index).random((1, side, side)).astype(np.float32)
    return Exhibit(attack, index, label, prediction, adversarial_prediction, 0.1, 0.5, original, 1 - original)
