"""Signs that gradients are masked: a network that only looks robust because the attack was blind.

Each sign is a rule on the rows of an evaluation, with a figure and what it means. It looks at what attacks are and did,
not at how a suite calls them, so that suites of one's own profit. Where an attack is beaten by one that should be the
weaker of the two, the rule is that of `bessemer.evaluation.paired`; thresholds on shares are one point.

Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", 2018, section 3.1. What a sound
attack has to show besides is in `bessemer.evaluation.checklist`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bessemer.evaluation import checklist
from bessemer.evaluation.paired import (
    POINT,
    SIGNIFICANT,
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
from bessemer.records import AttackRows, Evaluation, Finding, Share


def findings(evaluation: Evaluation) -> list[Finding]:
    """Everything that was looked for, found or not, the doubts first.

    Where the model is random, which attack turned an image is luck: there only the average is compared with one draw.
    """
    attacks = comparable(evaluation)
    random = _changing(evaluation) >= POINT * len(evaluation)
    found = [_repeatable(evaluation), _numbers(evaluation)]
    found += [_zero_gradients(evaluation, rows) for rows in evaluation.attacks if _own_gradients(rows)]
    for rows in attacks:
        if not random or "EOT" in Call.of(rows).names:
            found += _beaten(evaluation, rows, attacks)
    if not random:
        found += _scale_free(evaluation, attacks)
        found += _logits_beat_loss(evaluation, attacks)
        found += _adds(evaluation, attacks)
        found += _larger_radius(evaluation)
        found += checklist.findings(evaluation)
    rank = {"doubt": 0, "note": 1, "trust": 2}
    return sorted(_said_once(found), key=lambda finding: rank[finding.verdict])


def _said_once(found: list[Finding]) -> list[Finding]:
    """What several attacks passed is one finding, with the figure of the first."""
    passed: dict[str, list[Finding]] = {}
    for finding in found:
        if finding.verdict == "trust" and finding.attack:
            passed.setdefault(finding.name, []).append(finding)
    told = [finding for finding in found if finding.verdict != "trust" or not finding.attack]
    for first, *others in passed.values():
        alike = ", ".join(dict.fromkeys(finding.attack for finding in others))
        figure = f"{first.attack}: {first.figure}; no different for {alike}"
        told.append(replace(first, figure=figure, attack="") if others else first)
    return told


# --- the model's answers ---------------------------------------------------------------------------------------------


def _changing(evaluation: Evaluation) -> int:
    return int(evaluation.notes.get("predictions_that_change", 0))


def _repeatable(evaluation: Evaluation) -> Finding:
    changing = _changing(evaluation)
    return Finding(
        name="predictions repeat",
        verdict="doubt" if changing else "trust",
        figure=f"{changing} of {len(evaluation)} predictions change between two identical calls",
        meaning="The model is random, so one gradient is not the gradient of what it does on average."
        if changing
        else "The model gives the same answer to the same image, so an attack sees what the judge sees.",
        advice="Attack the average over the randomness, EOT(attack), and report the worst of several draws."
        if changing
        else "",
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


# --- gradients that hide ---------------------------------------------------------------------------------------------


def _own_gradients(rows: AttackRows) -> bool:
    return bool(rows["gradients"].any()) and "Transfer" not in Call.of(rows).names


def _zero_gradients(evaluation: Evaluation, rows: AttackRows) -> Finding:
    single, double = evaluation.zero_gradient_share(rows.name), evaluation.zero_in_float64_share(rows.name)
    verdict = "doubt" if single.value >= POINT else "note" if single.count else "trust"
    in_float64 = f"{percent(double)} also in float64" if double.total else "float64 could not be asked"
    return Finding(
        name="zero gradients",
        verdict=verdict,
        figure=f"{percent(single)} of correctly classified images met an all-zero input gradient in float32, "
        f"{in_float64}",
        meaning="An attack that follows a gradient of exactly zero goes nowhere: these images count as robust without "
        "having been attacked. Where float64 still has a gradient, the softmax underflowed; the network is confident, "
        "not robust."
        if single.count
        else "Every gradient this attack asked for pointed somewhere.",
        advice=f"Believe the attacks on the margin loss or the logits instead of {rows.name}." if single.count else "",
        attack=rows.name,
    )


def _scale_free(evaluation: Evaluation, attacks: list[AttackRows]) -> list[Finding]:
    found = []
    for family in families(attacks, "loss"):
        plain = family.get("'cross-entropy'")
        for loss, label in (("'margin'", "margin"), ("'dlr'", "DLR")):
            if plain is not None and loss in family:
                found.append(_loss_beats(evaluation, plain, family[loss], label))
    return found


def _loss_beats(evaluation: Evaluation, plain: AttackRows, twin: AttackRows, loss: str) -> Finding:
    better = gain(evaluation, twin, plain)
    verdict, meaning, advice = "trust", f"The {loss} loss does not find significantly more than cross-entropy.", ""
    if better:
        verdict = "doubt"
        meaning = f"The same search finds {100 * better:.1f} points more once its loss cannot underflow"
        advice = f"Do not quote {plain.name}; quote what the {loss} loss finds."
        if _blinded(evaluation, plain, twin):
            meaning += ": cross-entropy's gradient was hidden, not small."
        elif plain.kind == "minimal":
            verdict, advice = "note", "Judge by attacks of many steps."
            meaning += f", without any hidden gradient: one ray is a weak attack, and the {loss} loss's leads further."
        else:
            meaning += (
                ", though no gradient is all zero: cross-entropy leads it astray, or its gradients are all but hidden."
            )
    return Finding(
        name=f"the {loss} loss beats cross-entropy",
        verdict=verdict,
        figure=f"{plain.name} leaves {percent(evaluation.robust_accuracy(plain.name))} standing, "
        f"the same attack on the {loss} loss {percent(evaluation.robust_accuracy(twin.name))}",
        meaning=meaning,
        advice=advice,
        attack=plain.name,
    )


def _blinded(evaluation: Evaluation, attack: AttackRows, other: AttackRows) -> bool:
    """Whether at least a point of the images that only the other attack turned met an all-zero gradient in this one."""
    gained = evaluation.survivors(attack.name) & ~evaluation.survivors(other.name)
    return bool((gained & (attack["zero_gradients"] > 0)).sum() >= POINT * len(evaluation))


def _logits_beat_loss(evaluation: Evaluation, attacks: list[AttackRows]) -> list[Finding]:
    calls = [(rows, Call.of(rows)) for rows in attacks]
    rays = [rows for rows, call in calls if call.names == ("FGSLine",) and call.get("loss") == "'cross-entropy'"]
    logits = [rows for rows, call in calls if call.names == ("HotCold",) and call.get("rank") == "1"]
    return [_ray_beats(evaluation, ray, other) for ray in rays for other in logits]


def _ray_beats(evaluation: Evaluation, ray: AttackRows, logits: AttackRows) -> Finding:
    better = gain(evaluation, logits, ray)
    blinded = better > 0 and _blinded(evaluation, ray, logits)
    if blinded:
        meaning = (
            f"The direction taken from the logits turns {100 * better:.1f} points more images than the direction taken "
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
        figure=f"along the loss gradient {percent(evaluation.success_rate(ray.name))} can be turned, along the logits "
        f"{percent(evaluation.success_rate(logits.name))}",
        meaning=meaning,
        advice=f"A low {ray.name} rate is no sign of robustness here; compare distances under {logits.name}."
        if better
        else "",
        attack=ray.name,
    )


# --- what should be weaker, and is stronger --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sign:
    """An attack that should not beat those that follow gradients: what it means where it does, and where it does not.

    masked: with `{points}` for the difference. strong: it may well beat a weak one, but not the strongest of the suite.
    """

    name: str
    masked: str
    sound: str
    advice: str
    strong: bool = False


ONE_STEP = Sign(
    "one step beats many",
    "A single step turns {points} points more images than many: the longer attack is led astray.",
    "One step does not turn significantly more images than many.",
    "Try more restarts, another loss, and an attack without gradients.",
)
NOISE = Sign(
    "noise beats the attack",
    "Shaking the pixels turns {points} points more images than following the gradient.",
    "Random draws from the same ball do not turn significantly more images than the attack.",
    "The gradients do not lead anywhere; use attacks without gradients.",
)
GRADIENT_FREE = Sign(
    "a search without gradients beats the attack",
    "A search that sees logits alone turns {points} points more images than following the gradient.",
    "A search that sees logits alone does not turn significantly more images than the attack.",
    "The gradients mislead: look for steps of the model without a useful gradient, and attack through a stand-in for "
    "them (BPDA).",
    strong=True,
)
TRANSFER = Sign(
    "transfer beats the attack",
    "Images made for another model turn {points} points more than those made for this one.",
    "Images made for another model do not turn significantly more than those made for this one.",
    "This model's own gradients are worse than a stranger's: look for what hides them, and count the transferred "
    "images in the worst case.",
    strong=True,
)
AVERAGE = Sign(
    "averaging beats a single gradient",
    "Following the gradient averaged over the model's draws turns {points} points more images than following one draw.",
    "Averaging over the model's draws does not turn significantly more images.",
    "Quote the averaged attack, and raise its number of samples until the figure is flat.",
)
STAND_IN = Sign(
    "a stand-in gradient beats the model's own",
    "With another backward pass for its first stage the same attack turns {points} points more images: the stage hides "
    "the gradient, and does not make the model robust.",
    "Another backward pass for its first stage does not help the attack.",
    "Quote the attack through the stand-in.",
)


def _gradient_free(rows: AttackRows) -> bool:
    return rows.kind == "bounded" and steps(rows) == 0 and bool(rows["forwards"].any())


def _beaten(evaluation: Evaluation, by: AttackRows, attacks: list[AttackRows]) -> list[Finding]:
    """A finding for each attack that this one should not beat, and beats; one word of trust where there is none."""
    call = Call.of(by)
    climbing = [rows for rows in attacks if climbs(rows) and rows.threat == by.threat]
    wrapper = next((name for name in ("EOT", "BPDA") if name in call.names), None)
    if wrapper is not None:
        sign = AVERAGE if wrapper == "EOT" else STAND_IN
        climbing = [rows for rows in attacks if Call.of(rows) == call.unwrapped(wrapper)]
    elif "Transfer" in call.names:
        sign = TRANSFER
    elif by.kind == "random":
        sign = NOISE
    elif _gradient_free(by):
        sign = GRADIENT_FREE
    elif by.kind == "bounded" and steps(by) == 1:
        sign = ONE_STEP
    else:
        return []
    if not climbing:
        return []
    gains = {rows.name: gain(evaluation, by, rows) for rows in climbing}
    standing = {rows.name: evaluation.robust_accuracy(rows.name) for rows in (by, *climbing)}
    by_strength = sorted(gains, key=lambda name: standing[name].count)
    strongest, weakest = by_strength[0], by_strength[-1]
    outdone = sign.strong and not gains[strongest]
    found = []
    for name in [name for name in gains if gains[name]] or [weakest]:
        meaning, advice = sign.sound, ""
        if gains[name]:
            meaning = sign.masked.format(points=f"{100 * gains[name]:.1f}")
            advice = f"{strongest} is not beaten, so quote that." if outdone else sign.advice
        found.append(
            Finding(
                name=sign.name,
                verdict="trust" if not gains[name] else "note" if outdone else "doubt",
                figure=f"{by.name} leaves {percent(standing[by.name])} standing, {name} {percent(standing[name])}",
                meaning=meaning,
                advice=advice,
                attack=name if gains[name] else "",
            )
        )
    return found


def _adds(evaluation: Evaluation, attacks: list[AttackRows]) -> list[Finding]:
    """In a cascade a search without gradients meets what the gradient attacks left: it should find next to nothing."""
    met_all = {rows.name for rows in attacks}
    right, climbed, found = int(evaluation.right.sum()), False, []
    for rows in evaluation.attacks:
        if climbed and rows.name not in met_all and _gradient_free(rows):
            added = int(evaluation.turned(rows.name).sum())
            masked = exceeds(added, right, POINT)
            found.append(
                Finding(
                    name="a search without gradients adds little",
                    verdict="doubt" if masked else "trust",
                    figure=f"{rows.name} turned {percent(Share(added, right))} of correctly classified images after "
                    "the attacks before it",
                    meaning="A search that sees logits alone still turned many images that the gradients had missed."
                    if masked
                    else "A search that sees logits alone found next to nothing that the gradients had missed.",
                    advice=GRADIENT_FREE.advice if masked else "",
                )
            )
        climbed = climbed or climbs(rows)
    return found


# --- more room -------------------------------------------------------------------------------------------------------


def _larger_radius(evaluation: Evaluation) -> list[Finding]:
    norm, radius = ball(evaluation.threat)
    curve = checklist.united(evaluation, norm)
    if curve is None or radius not in curve.eps or not 0 < radius < max(curve.eps):
        return []
    wider = min((eps for eps in curve.eps if eps >= 1.999 * radius), default=max(curve.eps))
    none, one, two = (Share(curve.robust[curve.eps.index(eps)], curve.total) for eps in (min(curve.eps), radius, wider))
    # of a few images none may fall by chance, even where every tenth does
    enough = 0.9**one.count < SIGNIFICANT
    stuck = enough and one.value >= 5 * POINT and one.value - two.value < POINT
    tiny = none.value - one.value < POINT
    meaning = "With more room the attack turns more images, or nothing was left to turn."
    if stuck and tiny:
        meaning = "Nothing falls at the radius, nor with more room: both are too small to tell, or the attack is blind."
    elif stuck:
        meaning = "More room turns no more images: the attack is not limited by its ball but by its gradients."
    return [
        Finding(
            name="a larger radius helps",
            verdict="trust" if not stuck else "note" if tiny else "doubt",
            figure=f"{percent(one)} stand at the radius, {percent(two)} at {wider / radius:.3g} times the radius",
            meaning=meaning,
            advice="Look at zero gradients, and try an attack without gradients." if stuck else "",
            attack=checklist.doubted_by(curve),
        )
    ]
