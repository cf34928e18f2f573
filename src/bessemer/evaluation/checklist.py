"""What a sound evaluation has to show: the sanity tests of a published checklist that a machine can run.

Carlini, Athalye, Papernot, Brendel, Rauber, Tsipras, Goodfellow, Madry and Kurakin, "On evaluating adversarial
robustness", 2019. Where each test of theirs is run:

    many steps beat one; gradients beat noise, transfer and search     `masking`: what should be weaker, and is stronger
    a larger radius never turns fewer                                  the same attack at several radii; curves unite
                                                                       smaller radii, so there it holds by construction
    more steps, more restarts change little                            the same attack with twice as many
    convergence within the budget                                      what fell in the last quarter of the passes, or
                                                                       in the second half, where a half is a run too
    chance is left at a large radius                                   the curve at Linf 0.5, where all can be grey
    an unbounded attack turns every image                              minimal attacks of many steps
    no distance exceeds that to an image of another class              median distances of minimal attacks
    per-image worst case, not the worst average                        by construction (`Evaluation.worst_case`)

The suite `checklist` holds the attacks they need; in other suites they are run on the attacks that are there.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bessemer.evaluation.paired import (
    POINT,
    Call,
    ball,
    climbs,
    comparable,
    exceeds,
    families,
    gain,
    percent,
    steps,
)
from bessemer.records import WORST, AttackRows, Curve, Evaluation, Finding, Share
from bessemer.threat import THREATS, Images

FIRST = 200  # images among which the nearest with another answer is looked for


def findings(evaluation: Evaluation) -> list[Finding]:
    """Each test for which the suite has the attacks, passed or not."""
    attacks = comparable(evaluation)
    found = [finding for setting in ("steps", "restarts") for finding in _converged(evaluation, attacks, setting)]
    found += [finding for rows in evaluation.attacks for finding in _climbing(evaluation, rows)]
    found += [finding for rows in attacks for finding in _plateau(evaluation, rows)]
    found += _monotone(evaluation, attacks)
    found += _large_budget(evaluation)
    found += _unbounded(evaluation, [rows for rows in attacks if _minimal(rows) and not _ray(rows)])
    found += [finding for rows in attacks for finding in _plausible(evaluation, rows)]
    return found


def united(evaluation: Evaluation, norm: str) -> Curve | None:
    """The curve of the worst case over the radius in a norm, or the only curve there is."""
    curves = [curve for curve in evaluation.curves if curve.norm == norm]
    return next((curve for curve in curves if curve.attack == WORST), curves[0] if len(curves) == 1 else None)


def doubted_by(curve: Curve) -> str:
    """Which attack a finding about a curve is about: none in particular, where it unites several."""
    return "" if curve.attack == WORST else curve.attack


# --- the budget ------------------------------------------------------------------------------------------------------


def _converged(evaluation: Evaluation, attacks: list[AttackRows], setting: str) -> list[Finding]:
    found = []
    for family in families((rows for rows in attacks if rows.kind == "bounded"), setting):
        amounts = {int(text): rows for text, rows in family.items() if text.isdecimal()}
        for amount, rows in sorted(amounts.items()):
            more = min((other for other in amounts if other >= 2 * amount), default=None)
            if more is not None:
                answered = more < max(amounts) or more > 2 * amount
                found.append(_grows(evaluation, rows, amounts[more], setting, more / amount, answered))
    return found


def _grows(
    evaluation: Evaluation, rows: AttackRows, more: AttackRows, setting: str, times: float, answered: bool
) -> Finding:
    """answered: a still larger budget is there to look at, or the step to this one was too large to doubt it."""
    better = gain(evaluation, more, rows)
    return Finding(
        name=f"{setting} have converged",
        verdict="trust" if not better else "note" if answered else "doubt",
        figure=f"{rows.name} leaves {percent(evaluation.robust_accuracy(rows.name))} standing, with {times:.3g} times "
        f"the {setting} {percent(evaluation.robust_accuracy(more.name))}",
        meaning=f"More {setting} still turn {100 * better:.1f} points more images: the smaller budget was too small"
        + ("." if answered else ", and the larger one may be.")
        if better
        else f"More {setting} do not turn significantly more images.",
        advice=f"Double the {setting} until the figure is flat, and quote the last." if better else "",
        attack=rows.name if answered else more.name,
    )


def _climbing(evaluation: Evaluation, rows: AttackRows) -> list[Finding]:
    fallen = evaluation.turned(rows.name)
    budget = int(rows["forwards"].max(initial=0))
    if not climbs(rows) or _halves(rows) or not _leaves_early(evaluation, rows):
        return []
    late = Share(int((fallen & (rows["forwards"] > 0.75 * budget)).sum()), int(evaluation.right.sum()))
    climbing = late.value >= 2 * POINT and bool(evaluation.survivors(rows.name).any())
    return [
        Finding(
            name="still climbing at the end",
            verdict="note" if climbing else "trust",
            figure=f"{percent(late)} of correctly classified images fell in the last quarter of {budget} passes",
            meaning="The attack was still succeeding when its budget ended; more steps would find more."
            if climbing
            else "The attack had stopped finding more before its budget ended.",
            advice="Raise the number of steps until this is flat." if climbing else "",
            attack=rows.name,
        )
    ]


def _plateau(evaluation: Evaluation, rows: AttackRows) -> list[Finding]:
    if not _halves(rows) or not _leaves_early(evaluation, rows):
        return []
    budget = int(Call.of(rows).get("steps"))
    half, whole = evaluation.over_steps(rows.name, [budget // 2, budget])
    fell = half.count - whole.count
    # the longer run holds the shorter, so the images that only one of them turned are all the longer one's
    falling = fell >= POINT * len(evaluation) and exceeds(fell, fell, 0.5)
    return [
        Finding(
            name="still falling at the last budget",
            verdict="doubt" if falling else "trust",
            figure=f"{rows.name} leaves {percent(half)} standing after {budget // 2:,} steps, {percent(whole)} after "
            f"{budget:,}",
            meaning=f"Twice the steps still turn {100 * fell / len(evaluation):.1f} points more images: there is no "
            "plateau, and more steps would find more yet."
            if falling
            else "Twice the steps do not turn significantly more images: more of them would find next to nothing.",
            advice="Double the steps until the curve is flat; rank no networks by this budget." if falling else "",
            attack=rows.name,
        )
    ]


def _halves(rows: AttackRows) -> bool:
    """Whether the first half of its steps is the attack with half the steps: one run, steps of a size that is given."""
    call = Call.of(rows)
    kind, _, size = call.get("step_size").partition("(size=")
    if call.names != ("GradientAttack",) or call.get("restarts") != "1" or kind != "AtLeast":
        return False
    half = int(call.get("steps")) // 2
    return half > 0 and ball(rows.threat)[1] / half <= float(size.removesuffix(")"))


def _leaves_early(evaluation: Evaluation, rows: AttackRows) -> bool:
    """Whether images leave with the forward pass that finds them misclassified: then the passes say when each fell."""
    fallen = evaluation.turned(rows.name)
    return not fallen.any() or bool(rows["forwards"][fallen].min() < rows["forwards"].max(initial=0))


# --- the radius ------------------------------------------------------------------------------------------------------


def _monotone(evaluation: Evaluation, attacks: list[AttackRows]) -> list[Finding]:
    found = []
    for family in families((rows for rows in attacks if rows.kind == "bounded"), "threat"):
        members = sorted(family.values(), key=lambda rows: ball(rows.threat))
        for smaller, larger in pairwise(members):
            if ball(smaller.threat)[0] != ball(larger.threat)[0]:
                continue
            worse = gain(evaluation, smaller, larger)
            found.append(
                Finding(
                    name="a larger radius turns no fewer",
                    verdict="doubt" if worse else "trust",
                    figure=f"{percent(evaluation.robust_accuracy(smaller.name))} stand at {smaller.threat}, "
                    f"{percent(evaluation.robust_accuracy(larger.name))} at {larger.threat}",
                    meaning=f"With more room the attack turns {100 * worse:.1f} points fewer images, though what it "
                    "found before is still there: it loses its way."
                    if worse
                    else "With more room the attack does not turn significantly fewer images.",
                    advice="Take more and smaller steps, more restarts, and another loss." if worse else "",
                    attack=larger.name,
                )
            )
    return found


def _large_budget(evaluation: Evaluation) -> list[Finding]:
    curve = united(evaluation, "Linf")
    boxed = not any("box=" in rows.attack for rows in evaluation.attacks)
    if curve is None or not boxed or not 0.5 <= max(curve.eps) < 1:
        return []
    # a grey image can be right for one class at most
    chance = int(np.bincount(evaluation.label[: curve.total]).max()) / curve.total
    left = Share(curve.robust[-1], curve.total)
    masked = left.value > chance + POINT
    return [
        Finding(
            name="a radius of 0.5 leaves chance",
            verdict="doubt" if masked else "trust",
            figure=f"{percent(left)} of images stand at Linf {max(curve.eps):g}, where every image can be turned grey; "
            f"always answering the commonest class would leave {100 * chance:.1f} %",
            meaning="A grey image is right for one class at most, so the attack is not finding what is there."
            if masked
            else "With a budget that makes every image grey, no more than chance is left, as it must be.",
            advice="Look at zero gradients, then try the margin loss, restarts, and an attack without gradients."
            if masked
            else "",
            attack=doubted_by(curve),
        )
    ]


# --- the distance ----------------------------------------------------------------------------------------------------


def _minimal(rows: AttackRows) -> bool:
    return rows.kind == "minimal" and not rows.threat


def _ray(rows: AttackRows) -> bool:
    """Whether it looks along one direction alone, which may miss."""
    return steps(rows) <= 1 and not Call.of(rows).get("steps")


def _unbounded(evaluation: Evaluation, attacks: list[AttackRows]) -> list[Finding]:
    right = int(evaluation.right.sum())
    left = {rows.name: Share(int(evaluation.survivors(rows.name).sum()), right) for rows in attacks}
    best = min(left, key=lambda name: left[name].count, default="")
    found = []
    for name, share in left.items():
        meaning, advice = "At some distance the attack turns every image, as it must.", ""
        if share.value >= POINT:
            meaning = (
                "Somewhere among all images lies one of another class, so it was not distance that stopped the attack, "
                "but its gradients, or too few steps."
            )
            advice = "Look at zero gradients, give it more steps, and try another attack of its kind."
        answered = left[best].value < POINT
        found.append(
            Finding(
                name="an unbounded attack turns every image",
                verdict="trust" if share.value < POINT else "note" if answered else "doubt",
                figure=f"{name}, at any distance, left {percent(share)} of correctly classified images standing",
                meaning=meaning,
                advice=f"{best} turns them all, so quote its distances." if advice and answered else advice,
                attack=name,
            )
        )
    return found


def _plausible(evaluation: Evaluation, rows: AttackRows) -> list[Finding]:
    seen = evaluation.notes.get("another_answer", {})
    if not _minimal(rows) or rows.norm not in seen:
        return []
    first = slice(0, int(seen["images"]))
    distances = evaluation.distances(rows.norm, rows.name)[first][evaluation.right[first]]
    if not len(distances):
        return []
    found, limit = float(np.median(distances)), float(seen[rows.norm])
    beyond = found > limit
    return [
        Finding(
            name="nearer than an image of another class",
            verdict="doubt" if beyond else "trust",
            figure=f"{rows.name} finds a wrong answer at a median {rows.norm} distance of {found:.3g}; the nearest "
            f"image that the model gives another answer is at {limit:.3g}",
            meaning="The data itself holds nearer points of another class than this attack found, so its distances say "
            "nothing about robustness."
            if beyond
            else "The attack finds nearer points than the data itself holds.",
            advice="Try another minimal attack, and start one from the nearest image of another class."
            if beyond
            else "",
            attack=rows.name,
        )
    ]


def another_answer(images: Images, labels: Int[Tensor, " n"], prediction: Int[Tensor, " n"]) -> dict[str, float]:
    """The median distance, by norm, from images that are right to the nearest one that the model answers otherwise.

    That one is a wrong answer itself, so no attack should have to go further. Of the first 200 images, whose number is
    told too; without norms where all answers agree.
    """
    flat, answer = images[:FIRST].flatten(1), prediction[:FIRST]
    medians = {"images": float(len(flat))}
    right = (answer == labels[:FIRST]).nonzero()[:, 0]
    if not len(right) or (answer == answer[0]).all():
        return medians
    for norm, threat in THREATS.items():
        size = threat(0.0).size
        nearest = [size(flat[answer != answer[place]] - flat[place]).min() for place in right]
        medians[norm] = float(torch.stack(nearest).median())
    return medians
