"""Evaluations written by hand: which images each attack turned, and in how many passes."""

import numpy as np

from bessemer.records import COLUMNS, NOT_TRIED, AttackRows, Evaluation

IMAGES = 200


def rows(
    name,
    turned,
    attack="PGD(threat=Linf(0.1))",
    kind="bounded",
    backwards=20,
    forwards=21,
    skipped=(),
    zero=(),
    norm="",
):
    """An attack on 200 images of class 0 that turns some of them, and in a cascade skips others."""
    columns = {column: np.zeros(IMAGES, kind_) for column, kind_ in COLUMNS.items()}
    columns["prediction"][list(turned)] = 1
    columns["prediction"][list(skipped)] = NOT_TRIED
    columns["backwards"][:], columns["forwards"][:] = backwards, forwards
    columns["gradients"][:] = backwards
    columns["zero_gradients"][list(zero)] = 1
    for column in ("forwards", "backwards", "gradients"):
        columns[column][list(skipped)] = 0
    threat = "" if kind == "minimal" else "Linf:0.1"
    return AttackRows(name, attack, kind, threat, columns, norm)


def evaluation(*attacks, curves=(), notes=None, threat="Linf:0.1", prediction=None):
    """Of a model that is right about every image, unless its predictions are given."""
    zeros = np.zeros(IMAGES, np.int64)
    return Evaluation(
        model="model",
        data="",
        suite="own",
        threat=threat,
        seed=0,
        classes=["a", "b"],
        index=np.arange(IMAGES),
        label=zeros,
        prediction=zeros if prediction is None else prediction,
        attacks=list(attacks),
        curves=list(curves),
        notes=notes or {},
    )
