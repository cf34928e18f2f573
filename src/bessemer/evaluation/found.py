"""What was found about one batch, and how batches become an `Evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bessemer.evaluation.judge import Part
from bessemer.evaluation.suites import Suite
from bessemer.records import WORST, AttackRows, Curve, Evaluation, Exhibit

EXHIBITS = 5  # images in the gallery, each of another class
SPECIMENS = 24  # images shown under the attack that decided them
PICTURED = 64  # how far into the data specimens are looked for: pictures of large images fill the memory
GREY_LEVELS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
DISTANCES = 48  # points of a curve over distances that are no grey levels


@dataclass(frozen=True)
class Found:
    """One batch: plain data.

    place: of its first image in the data. curves: how many of `followed` images stand at each radius, by attack.
    """

    number: int
    place: int
    label: list[int]
    prediction: list[int]
    digests: list[int]
    notes: dict[str, Any]
    parts: list[Part]
    curves: dict[str, dict[float, int]]
    followed: int


def pictured(place: int, label: list[int], prediction: list[int], classes: set[int]) -> list[int]:
    """Which images of the batch that begins at `place` are shown: the first right ones, and the first of each class.

    classes: those shown so far, to which new ones are added.
    """
    right = [at for at, (own, said) in enumerate(zip(label, prediction, strict=True)) if own == said]
    chosen = {at for at in right[:SPECIMENS] if place + at < PICTURED}
    for at in right:
        if label[at] not in classes and len(classes) < EXHIBITS:
            classes.add(label[at])
            chosen.add(at)
    return sorted(chosen)


def assembled(found: list[Found], suite: Suite, *, model: str, data: str, seed: int, classes: list[str]) -> Evaluation:
    """The evaluation that all batches make together, in the order of the data."""
    found = sorted(found, key=lambda one: one.number)
    rows = [AttackRows.joined([one.parts[place].rows for one in found]) for place in range(len(suite.attacks))]
    exhibits = [exhibit for one in found for part in one.parts for exhibit in part.exhibits]
    names = classes or [str(label) for label in range(found[0].notes["classes"])]
    evaluation = Evaluation(
        model=model,
        data=data,
        suite=suite.name,
        threat=next((one.threat for one in rows if one.threat), ""),
        seed=seed,
        classes=names,
        index=np.concatenate([np.arange(one.place, one.place + len(one.label)) for one in found]),
        label=np.concatenate([np.array(one.label, np.int64) for one in found]),
        prediction=np.concatenate([np.array(one.prediction, np.int64) for one in found]),
        attacks=rows,
        notes=_notes(found, suite),
    )
    return replace(
        evaluation,
        curves=_followed(found, rows) or _distances(evaluation),
        gallery=_gallery(exhibits),
        specimens=_specimens(evaluation, exhibits),
    )


def _notes(found: list[Found], suite: Suite) -> dict[str, Any]:
    first = found[0].notes
    counted: dict[str, int] = {}
    for one in found:
        for part in (one.notes["counted"], *(part.notes for part in one.parts)):
            for key, count in part.items():
                counted[key] = counted.get(key, 0) + count
    known = [digest for one in found for digest in one.digests]
    remarks = {
        name: said for name, attack in suite.attacks.items() if (said := "; ".join(attack.remarks(first["classes"])))
    }
    return {
        **counted,
        "duplicates": len(known) - len(set(known)),
        "preprocessing": first["preprocessing"],
        "another_answer": first["another_answer"],
        **({"remarks": remarks} if remarks else {}),
    }


def _followed(found: list[Found], rows: list[AttackRows]) -> list[Curve]:
    """The curves that were measured, summed over the batches."""
    counts: dict[str, dict[float, int]] = {}
    for one in found:
        for name, curve in one.curves.items():
            own = counts.setdefault(name, {})
            for eps, standing in curve.items():
                own[eps] = own.get(eps, 0) + standing
    total = sum(one.followed for one in found)
    norm = next((one.threat.partition(":")[0] for one in rows if one.threat), "")
    if len(counts) == 2:  # one attack, and a union of one
        counts.pop(WORST)
    return [Curve(name, norm, list(curve), list(curve.values()), total) for name, curve in counts.items()]


def _distances(evaluation: Evaluation) -> list[Curve]:
    """Robust accuracy over the radius from the distances of minimal attacks, and of all of a norm together."""
    curves = []
    minimal = [rows for rows in evaluation.attacks if rows.kind == "minimal"]
    for norm in dict.fromkeys(rows.norm for rows in minimal):
        by_name = {rows.name: evaluation.distances(norm, rows.name) for rows in minimal if rows.norm == norm}
        if len(by_name) > 1:
            by_name[WORST] = evaluation.distances(norm)
        finite = np.concatenate([distance[np.isfinite(distance)] for distance in by_name.values()])
        largest = float(finite.max(initial=0.0))
        eps = [0.0, *(level / 255 for level in GREY_LEVELS)] if norm == "Linf" else []
        eps = eps or [largest * step / DISTANCES for step in range(DISTANCES + 1)]
        for name, distance in by_name.items():
            # distances in whole grey levels, as float32 has them
            robust = [int((distance > radius + 1e-6).sum()) for radius in eps]
            curves.append(Curve(name, norm, eps, robust, len(evaluation)))
    return curves


def _gallery(exhibits: list[Exhibit]) -> list[Exhibit]:
    """A few images, each the first of another class, under every attack that met them."""
    chosen: dict[int, int] = {}
    for exhibit in sorted(exhibits, key=lambda exhibit: exhibit.index):
        chosen.setdefault(exhibit.label, exhibit.index)
    kept = set(sorted(chosen.values())[:EXHIBITS])
    return [exhibit for exhibit in exhibits if exhibit.index in kept]


def _specimens(evaluation: Evaluation, exhibits: list[Exhibit]) -> list[Exhibit]:
    """The first right images, each under the attack that turned it first, or the last that tried.

    Where no attack has a bound, the one that found the nearest wrong answer takes the place of the first.
    """
    decided = dict(zip(evaluation.index.tolist(), evaluation.decided(), strict=True))
    by_image: dict[int, list[Exhibit]] = {}
    for exhibit in exhibits:
        by_image.setdefault(exhibit.index, []).append(exhibit)
    return [
        _telling(by_image[index], decided[index], bool(evaluation.bounded)) for index in sorted(by_image)[:SPECIMENS]
    ]


def _telling(exhibits: list[Exhibit], decided: str, bounded: bool) -> Exhibit:
    if not decided:
        return exhibits[-1]
    if bounded:
        return next(exhibit for exhibit in exhibits if exhibit.attack == decided)
    return min((one for one in exhibits if one.adversarial_prediction != one.label), key=lambda one: one.l2)
