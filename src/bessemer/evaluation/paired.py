"""Two attacks, compared image by image.

An image that both turn, or neither, says nothing about which is better. Of those that one of them alone turned, half
would fall to each if they were equally good: the exact form of McNemar's test (Q. McNemar, "Note on the sampling error
of the difference between correlated proportions or percentages", 1947). A difference counts from one point of all
images on, at p < 0.01.

In a cascade an attack meets only what stood so far, so whatever came before it would always seem the worse of the two.
Attacks are therefore compared only where both met every image that the model got right.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from bessemer.records import NOT_TRIED, AttackRows, Evaluation, Share
from bessemer.threat import THREATS, read_number

POINT = 0.01
SIGNIFICANT = 0.01


def comparable(evaluation: Evaluation) -> list[AttackRows]:
    """The attacks that met every image the model got right, in the order of the suite."""
    return [rows for rows in evaluation.attacks if (rows["prediction"][evaluation.right] != NOT_TRIED).all()]


def gain(evaluation: Evaluation, one: AttackRows, other: AttackRows) -> float:
    """By which share of all images one attack turns more than another; 0 where that is too little, or may be chance."""
    alive_one, alive_other = evaluation.survivors(one.name), evaluation.survivors(other.name)
    only_one, only_other = int((~alive_one & alive_other).sum()), int((alive_one & ~alive_other).sum())
    difference = (only_one - only_other) / len(evaluation)
    return difference if difference >= POINT and exceeds(only_one, only_one + only_other, 0.5) else 0.0


def exceeds(count: int, total: int, share: float) -> bool:
    """Whether `count` of `total` is significantly more than a share, by the exact binomial test."""
    from scipy.stats import binomtest  # noqa: PLC0415  (half a second that nobody else needs to wait)

    return bool(binomtest(count, total, share, alternative="greater").pvalue < SIGNIFICANT)


def ball(threat: str) -> tuple[str, float]:
    """The norm and radius that text such as `Linf:8/255` names; no norm and 0 where it is none such."""
    norm, _, radius = threat.partition(":")
    return (norm, read_number(radius)) if norm in THREATS else ("", 0.0)


def percent(share: Share) -> str:
    """`71.2 %`, in the text of a finding."""
    return f"{100 * share.value:.1f} %" if share.total else "nothing"


# --- what an attack is, read from the call that makes it -------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """An attack's class and settings, as text; wrappers (`EOT(attack=PGD(…))`) from the outermost inwards."""

    names: tuple[str, ...]
    settings: tuple[dict[str, str], ...]

    @classmethod
    def of(cls, rows: AttackRows) -> Call:
        """Without settings, where the attack's repr is no expression (its loss is a function, say)."""
        names, settings = [], []
        try:
            read: ast.expr | None = ast.parse(rows.attack.replace("<lambda>", "a_lambda"), mode="eval").body
        except SyntaxError:
            read = None
        while isinstance(read, ast.Call):
            words = {word.arg: word.value for word in read.keywords if word.arg}
            held = words.pop("attack", read.args[0] if read.args else None)
            names.append(ast.unparse(read.func))
            settings.append({name: ast.unparse(value) for name, value in words.items()})
            read = held
        return cls(tuple(names) or (rows.attack.partition("(")[0],), tuple(settings) or ({},))

    def get(self, setting: str, otherwise: str = "") -> str:
        """A setting of the attack or of a wrapper around it."""
        return next((each[setting] for each in self.settings if setting in each), otherwise)

    def without(self, setting: str) -> Call:
        """The same call, whatever the setting is."""
        left = [{name: value for name, value in each.items() if name != setting} for each in self.settings]
        return Call(self.names, tuple(left))

    def unwrapped(self, wrapper: str) -> Call:
        """The same call without a wrapper."""
        kept = [place for place, name in enumerate(self.names) if name != wrapper]
        return Call(tuple(self.names[place] for place in kept), tuple(self.settings[place] for place in kept))


def families(attacks: Iterable[AttackRows], setting: str) -> list[dict[str, AttackRows]]:
    """Attacks that differ in one setting alone, by that setting's text: the same search with more steps, say."""
    found: list[tuple[Call, dict[str, AttackRows]]] = []
    for rows in attacks:
        call = Call.of(rows)
        if value := call.get(setting):
            rest = call.without(setting)
            family = next((family for other, family in found if other == rest), None)
            if family is None:
                found.append((rest, family := {}))
            family[value] = rows
    return [family for _, family in found if len(family) > 1]


def steps(rows: AttackRows) -> int:
    """How many gradients were followed, for the image that took most; 0 for a search without gradients."""
    samples = Call.of(rows).get("samples", "1")
    return int(rows["backwards"].max(initial=0)) // (int(samples) if samples.isdecimal() else 1)


def climbs(rows: AttackRows) -> bool:
    """Whether it follows the model's own gradient inside a ball, step after step, away from the label."""
    call = Call.of(rows)
    elsewhere = {"Transfer", "Within"} & set(call.names) or call.get("aim", "AsAsked()") != "AsAsked()"
    return rows.kind == "bounded" and steps(rows) > 1 and not elsewhere
