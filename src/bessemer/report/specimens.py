"""Images in the order in which they fall, the easiest first and those that stand last.

How easily an image falls is told by the passes it took; where the attacks seek the nearest wrong answer, by how near
that is, in the norm of the first of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bessemer.records import NOT_TRIED, Evaluation, Exhibit
from bessemer.records.evaluation import Column
from bessemer.report import words
from bessemer.report.comparison import Comparison, Entry, doubts
from bessemer.report.gallery import Picture, class_name, magnified, picture, shrunk

SIDE = 84  # three fit beside one another on a phone, at a whole multiple of 12, 14 and 28 pixels


@dataclass(frozen=True)
class Specimen:
    """One image with what was done to it, and what that took."""

    index: int
    original: Picture
    change: Picture
    factor: str
    adversarial: Picture
    label: str
    verdict: str
    answers: str
    attack: str
    took: str
    doubted: bool


@dataclass(frozen=True)
class Order:
    """The specimens of one run under one suite."""

    place: int
    name: str
    conditions: str
    by: str
    specimens: list[Specimen]


def orders(comparisons: list[Comparison]) -> list[Order]:
    """One for each evaluation that kept specimens."""
    return [
        _order(comparison, entry)
        for comparison in comparisons
        for entry in comparison.entries
        if entry.evaluation.specimens
    ]


def _order(comparison: Comparison, entry: Entry) -> Order:
    evaluation = entry.evaluation
    norm = seeks_nearest(evaluation)
    hardness = evaluation.distances(norm) if norm else evaluation.effort()
    place = {int(index): number for number, index in enumerate(evaluation.index)}
    shown = sorted(
        (exhibit for exhibit in evaluation.specimens if exhibit.index in place),
        key=lambda exhibit: (hardness[place[exhibit.index]], place[exhibit.index]),
    )
    by = f"by the {norm} distance of the nearest wrong answer" if norm else "by the forward passes until it fell"
    specimens = [
        _specimen(entry, exhibit, _took(evaluation, exhibit, place[exhibit.index], norm, hardness)) for exhibit in shown
    ]
    return Order(entry.place, entry.name, comparison.title, by, specimens)


def seeks_nearest(evaluation: Evaluation) -> str:
    """The norm that attacks without a bound minimise, the first of several; empty where an attack has a bound."""
    norms = [rows.norm for rows in evaluation.attacks if rows.kind == "minimal" and not evaluation.bounded]
    return next(filter(None, norms), "")


def _took(evaluation: Evaluation, exhibit: Exhibit, place: int, norm: str, hardness: Column) -> str:
    """What it took to turn an image, as the end of a sentence."""
    least = float(hardness[place])
    if least == 0:
        return ""
    if math.isinf(least):
        spent = sum(int(rows["forwards"][place]) for rows in evaluation.bounded or evaluation.attacks)
        return f"after {words.count(spent, 'forward pass')}"
    if not norm:
        return f"after {words.count(int(least), 'forward pass')}"
    shown = float(evaluation.distances(norm, exhibit.attack)[place])
    farther = f"; shown at {words.radius(norm, shown)}" if least < shown < math.inf else ""
    return f"at {norm} {words.radius(norm, least)}{farther}"


def _specimen(entry: Entry, exhibit: Exhibit, took: str) -> Specimen:
    evaluation = entry.evaluation
    label, before = (class_name(evaluation, number) for number in (exhibit.label, exhibit.prediction))
    after = "not tried" if exhibit.adversarial_prediction == NOT_TRIED else ""
    after = after or class_name(evaluation, exhibit.adversarial_prediction)
    turned = exhibit.adversarial_prediction != exhibit.label
    wrong = exhibit.prediction != exhibit.label
    verdict = "wrong before" if wrong else "turned" if turned else "stands"
    change, factor = magnified(exhibit)
    what = f"image {exhibit.index} under {exhibit.attack} against {entry.name}"
    return Specimen(
        exhibit.index,
        picture(shrunk(exhibit.original, SIDE), f"Original image {exhibit.index}, of class {label}", SIDE),
        # averaging neighbours would wipe a change out; every so many pixels one is shown
        picture(_thinned(change), f"Change of {what}, {'magnified' if factor else 'none'}", SIDE),
        f"×{factor:.3g}" if factor else "no change",
        picture(shrunk(exhibit.adversarial, SIDE), f"{words.sentence(what)}: {verdict}", SIDE),
        label,
        verdict,
        before if before == after else f"{before} → {after}",
        "" if wrong else exhibit.attack,
        took,
        bool(doubts(evaluation, exhibit.attack)) and verdict == "stands",
    )


def _thinned(pixels: Column) -> Column:
    every = math.ceil(max(pixels.shape[1:]) / (2 * SIDE))
    return pixels[:, ::every, ::every]
