"""Signs that gradients are masked: a network that only looks robust because the attack was blind.

Each sign is a rule on the rows of an evaluation, with a figure and what it means. Comparisons of two attacks are
paired,
image by image: an exact test (McNemar's, by the binomial distribution) at p < 0.01 and at least one point of
difference.
Sources: Carlini et al., "On evaluating adversarial robustness", 2019; Athalye, Carlini and Wagner, "Obfuscated
gradients give a false sense of security", 2018.
"""

from __future__ import annotations

import numpy as np

from bessemer.records import AttackRows, Curve, Evaluation, Finding, Share
from bessemer.threat import parse

POINT = 0.01
SIGNIFICANT = 0.01
MARGIN = ", margin loss"  # the suites' name for the twin of an attack whose loss cannot underflow
NOISE = "noise"  # and for random draws from the same ball


def findings(evaluation: Evaluation) -> list[Finding]:
    """Everything that was looked for, found or not, the doubts first."""
    found = [_repeatable(evaluation), _numbers(evaluation)]
    found += [_zero_gradients(evaluation, rows) for rows in evaluation.attacks if rows["gradients"].any()]
    names = [rows.name for rows in evaluation.attacks]
    found += [_scale_free(evaluation, name) for name in names if name + MARGIN in names]
    if "FGSM" in names:
        found += [_one_step(evaluation, name) for name in names if name.startswith("PGD") and MARGIN not in name]
    if "FGS" in names and "HC1" in names:
        found.append(_logits_beat_loss(evaluation))
    found += [_climbing(evaluation, rows) for rows in evaluation.attacks if rows.name.startswith("PGD")]
    found += [_no_help(evaluation, curve) for curve in evaluation.curves if _widens(evaluation, curve)]
    found += [_large_budget(evaluation, curve) for curve in evaluation.curves if _is_large(curve)]
    if NOISE in names:
        found += [_noise(evaluation, name) for name in names if name.startswith("PGD")]
    rank = {"doubt": 0, "note": 1, "trust": 2}
    return sorted(found, key=lambda finding: rank[finding.verdict])


def beats(evaluation: Evaluation, one: str, other: str) -> tuple[bool, float]:
    """Whether one attack turns significantly more images than another, and by how many points (as a share)."""
    alive_one, alive_other = evaluation.survivors(one), evaluation.survivors(other)
    only_one, only_other = int((~alive_one & alive_other).sum()), int((alive_one & ~alive_other).sum())
    gain = (only_one - only_other) / len(evaluation)
    if gain < POINT:
        return False, gain
    from scipy.stats import binomtest  # noqa: PLC0415  (half a second that nobody else needs to wait)

    return binomtest(only_one, only_one + only_other, alternative="greater").pvalue < SIGNIFICANT, gain


def _repeatable(evaluation: Evaluation) -> Finding:
    changing = int(evaluation.notes.get("predictions_that_change", 0))
    return Finding(
        name="predictions repeat",
        verdict="doubt" if changing else "trust",
        figure=f"{changing} of {len(evaluation)} predictions change between two identical calls",
        meaning="The model is random, so one gradient is not the gradient of what it does on average."
        if changing
        else "The model gives the same answer to the same image, so an attack sees what the judge sees.",
        advice="Attack the average over the randomness, and report the worst of several draws." if changing else "",
    )


def _numbers(evaluation: Evaluation) -> Finding:
    broken = int(evaluation.notes.get("answers_not_a_number", 0))
    return Finding(
        name="answers are numbers",
        verdict="doubt" if broken else "trust",
        figure=f"{broken} attacked images made the model answer NaN",
        meaning="NaN is no answer; these images count as standing, which they may not be."
        if broken
        else "The model answers every attacked image with numbers.",
        advice="Look for a division or a logarithm that the attack drove out of its range." if broken else "",
    )


def _zero_gradients(evaluation: Evaluation, rows: AttackRows) -> Finding:
    single, double = evaluation.zero_gradient_share(rows.name), evaluation.zero_in_float64_share(rows.name)
    verdict = "doubt" if single.value >= POINT else "note" if single.count else "trust"
    in_float64 = f"{_percent(double)} also in float64" if double.total else "float64 could not be asked"
    return Finding(
        name="zero gradients",
        verdict=verdict,
        figure=f"{_percent(single)} of correctly classified images met an all-zero input gradient in float32, "
        f"{in_float64}",
        meaning="An attack that follows a gradient of exactly zero goes nowhere: these images count as robust without "
        "having been attacked. Where float64 still has a gradient, the softmax underflowed; the network is confident, "
        "not robust."
        if single.count
        else "Every gradient this attack asked for pointed somewhere.",
        advice=f"Believe the attacks on the margin loss or the logits instead of {rows.name}." if single.count else "",
        attack=rows.name,
    )


def _scale_free(evaluation: Evaluation, name: str) -> Finding:
    twin = name + MARGIN
    better, gain = beats(evaluation, twin, name)
    verdict, meaning, advice = (
        "trust",
        "The margin loss does not find significantly more than cross-entropy.",
        "",
    )
    if better:
        verdict = "doubt"
        meaning = f"The same search finds {100 * gain:.1f} points more once its loss cannot underflow"
        advice = f"Do not quote {name}; quote what the margin loss finds."
        if _blinded(evaluation, name, twin):
            meaning += ": cross-entropy's gradient was hidden, not small."
        elif evaluation.attack(name).kind == "minimal":
            verdict, advice = "note", "Judge by attacks of many steps."
            meaning += ", without any hidden gradient: one ray is a weak attack, and the margin's leads further."
        else:
            meaning += (
                ", though no gradient is all zero: cross-entropy leads it astray, or its gradients are all but hidden."
            )
    return Finding(
        name="the margin loss beats cross-entropy",
        verdict=verdict,
        figure=f"{name} leaves {_percent(evaluation.robust_accuracy(name))} standing, "
        f"the same attack on the margin loss {_percent(evaluation.robust_accuracy(twin))}",
        meaning=meaning,
        advice=advice,
        attack=name,
    )


def _blinded(evaluation: Evaluation, name: str, other: str) -> bool:
    """Whether at least a point of the images that only the other attack turned met an all-zero gradient in this one."""
    gained = evaluation.survivors(name) & ~evaluation.survivors(other)
    return (gained & (evaluation.attack(name)["zero_gradients"] > 0)).sum() >= POINT * len(evaluation)


def _one_step(evaluation: Evaluation, name: str) -> Finding:
    better, gain = beats(evaluation, "FGSM", name)
    return Finding(
        name="one step beats many",
        verdict="doubt" if better else "trust",
        figure=f"FGSM leaves {_percent(evaluation.robust_accuracy('FGSM'))} standing, {name} "
        f"{_percent(evaluation.robust_accuracy(name))}",
        meaning=f"A single step turns {100 * gain:.1f} points more images than many: the longer attack is led astray."
        if better
        else "One step does not turn significantly more images than many.",
        advice="Try more restarts, another loss, and an attack without gradients." if better else "",
        attack=name,
    )


def _logits_beat_loss(evaluation: Evaluation) -> Finding:
    better, gain = beats(evaluation, "HC1", "FGS")
    blinded = better and _blinded(evaluation, "FGS", "HC1")
    if blinded:
        meaning = (
            f"The direction taken from the logits turns {100 * gain:.1f} points more images than the direction taken "
            "from the loss: what the loss hides, the logits still show."
        )
    elif better:
        meaning = (
            "The logits' ray leads further than the loss's, without any hidden gradient: one ray is a weak attack."
        )
    else:
        meaning = "The direction of the logits does not turn significantly more images."
    return Finding(
        name="logits beat the loss",
        verdict="doubt" if blinded else "note" if better else "trust",
        figure=f"along the loss gradient {_percent(evaluation.success_rate('FGS'))} can be turned, along the logits "
        f"{_percent(evaluation.success_rate('HC1'))}",
        meaning=meaning,
        advice="A low FGS rate is no sign of robustness here; compare distances under HC1." if better else "",
        attack="FGS",
    )


def _climbing(evaluation: Evaluation, rows: AttackRows) -> Finding:
    # an image leaves the attack with the forward pass that finds it misclassified
    fallen = evaluation.right & ~evaluation.survivors(rows.name)
    budget = int(rows["forwards"].max(initial=0))
    late = Share(int((fallen & (rows["forwards"] > 0.75 * budget)).sum()), int(evaluation.right.sum()))
    climbing = late.value >= 2 * POINT and bool(evaluation.survivors(rows.name).any())
    return Finding(
        name="still climbing at the end",
        verdict="note" if climbing else "trust",
        figure=f"{_percent(late)} of correctly classified images fell in the last quarter of {budget} passes",
        meaning="The attack was still succeeding when its budget ended; more steps would find more."
        if climbing
        else "The attack had stopped finding more before its budget ended.",
        advice="Raise the number of steps until this is flat." if climbing else "",
        attack=rows.name,
    )


def _is_large(curve: Curve) -> bool:
    return curve.norm == "Linf" and 0.5 <= max(curve.eps) < 1


def _large_budget(evaluation: Evaluation, curve: Curve) -> Finding:
    # a grey image can be right for one class at most
    chance = int(np.bincount(evaluation.label[: curve.total]).max()) / curve.total
    left = Share(curve.robust[-1], curve.total)
    masked = left.value > chance + POINT
    return Finding(
        name="a radius of 0.5 leaves chance",
        verdict="doubt" if masked else "trust",
        figure=f"{_percent(left)} of images stand at Linf {max(curve.eps):g}, where every image can be turned grey; "
        f"always answering the commonest class would leave {100 * chance:.1f} %",
        meaning="A grey image is right for one class at most, so the attack is not finding what is there."
        if masked
        else "With a budget that makes every image grey, no more than chance is left, as it must be.",
        advice="Look at zero gradients, then try the margin loss, restarts, and an attack without gradients."
        if masked
        else "",
        attack=curve.attack,
    )


def _widens(evaluation: Evaluation, curve: Curve) -> bool:
    return bool(evaluation.threat) and 0 < parse(evaluation.threat).eps < max(curve.eps)


def _no_help(evaluation: Evaluation, curve: Curve) -> Finding:
    radius = parse(evaluation.threat).eps
    wider = min((eps for eps in curve.eps if eps >= 1.999 * radius), default=max(curve.eps))
    one, two = (Share(curve.robust[curve.eps.index(eps)], curve.total) for eps in (radius, wider))
    stuck = one.value >= 5 * POINT and one.value - two.value < POINT
    return Finding(
        name="a larger radius helps",
        verdict="doubt" if stuck else "trust",
        figure=f"{_percent(one)} stand at the radius, {_percent(two)} at {wider / radius:.3g} times the radius",
        meaning="More room turns no more images: the attack is not limited by its ball but by its gradients."
        if stuck
        else "With more room the attack turns more images, or nothing was left to turn.",
        advice="Look at zero gradients, and try an attack without gradients." if stuck else "",
        attack=curve.attack,
    )


def _noise(evaluation: Evaluation, name: str) -> Finding:
    better, gain = beats(evaluation, NOISE, name)
    return Finding(
        name="noise beats the attack",
        verdict="doubt" if better else "trust",
        figure=f"random draws leave {_percent(evaluation.robust_accuracy(NOISE))} standing, {name} "
        f"{_percent(evaluation.robust_accuracy(name))}",
        meaning=f"Shaking the pixels turns {100 * gain:.1f} points more images than following the gradient."
        if better
        else "Random draws from the same ball do not turn significantly more images than the attack.",
        advice="The gradients do not lead anywhere; use attacks without gradients." if better else "",
        attack=name,
    )


def _percent(share: Share) -> str:
    return "nothing" if np.isnan(share.value) else f"{100 * share.value:.1f} %"
