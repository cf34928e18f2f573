"""The worst of several attacks, image by image.

A model is as robust as the strongest attack says (Carlini et al., "On evaluating adversarial robustness", 2019,
section 4; AutoAttack is such an ensemble: Croce and Hein, 2020, section 6). An image that one attack turns is turned:

    worst(x) = the found point that fools the model, before those that do not; then the one with the largest margin

Of minimal attacks, the nearest point that fools the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from jaxtyping import Float, Int
from torch import Tensor

from bessemer.attacks.attack import Attack, Images, NearestSeen, Oracle, WorstSeen
from bessemer.attacks.goal import Goal, Rows
from bessemer.attacks.losses import Loss, cross_entropy, margin
from bessemer.attacks.wrapped import View, in_ball
from bessemer.errors import UsageError
from bessemer.threat import THREATS, Threat


@dataclass(frozen=True)
class Worst(Attack):
    """Several attacks of one kind, united image by image; each searches as it would alone, with the same seed.

    Those that need fewer passes go first, and where only verdicts count the others see only the images still standing.
    Distances of minimal attacks are in the norm that those with a `norm` share, or Linf where none has one.
    Raises `UsageError` for no attack at all, and for attacks of different kinds, balls or norms.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", tuple(self.attacks))
        if not self.attacks:
            raise UsageError("Worst needs at least one attack")
        _one("kind", [attack.kind for attack in self.attacks])
        _one("threat", [getattr(attack, "threat", None) for attack in self.attacks])
        if self.kind == "minimal":
            _one("norm", self._norms)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """As all of the attacks."""
        return self.attacks[0].kind

    @property
    def threat(self) -> Threat | None:
        """As all of the attacks; None where they have none."""
        return getattr(self.attacks[0], "threat", None)

    @property
    def norm(self) -> str:
        """What the distances of minimal attacks are measured in."""
        return next(iter(self._norms), "Linf")

    @property
    def _norms(self) -> list[str]:
        return [attack.norm for attack in self.attacks if hasattr(attack, "norm")]

    def inside(self, threat: Threat) -> Self:
        """The same attacks, all of them in another ball."""
        return replace(self, attacks=tuple(in_ball(attack, threat) for attack in self.attacks))

    def passes(self, classes: int) -> tuple[int, int]:
        """All of them, and a look at what each found."""
        each = [attack.passes(classes) for attack in self.attacks]
        return sum(forwards for forwards, _ in each) + len(each), sum(backwards for _, backwards in each)

    def remarks(self, classes: int) -> list[str]:
        """As the attacks say, each remark once."""
        return list(dict.fromkeys(remark for attack in self.attacks for remark in attack.remarks(classes)))

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """One attack after the other, cheap ones first."""
        if self.kind == "minimal":  # a point that is found may be found nearer, so nobody leaves
            nearest = NearestSeen(oracle, images, THREATS[self.norm](0.0).size)
            for attack in self.attacks:
                found = attack.search(oracle, images, goal, seed, index, until_success)
                nearest.offer(found, oracle.logits(found))
            return nearest.images
        classes = oracle.classes(images)
        worst = WorstSeen(oracle, images, until_success)
        for attack in sorted(self.attacks, key=lambda attack: sum(attack.passes(classes))):
            rows = worst.open
            if rows is None:
                found = attack.search(oracle, images, goal, seed, index, until_success)
            elif len(rows):
                part = _Part(oracle, rows, goal)
                found = attack.search(part, images[rows], goal.at(rows), seed, index[rows], until_success)
            else:
                break
            logits = oracle.logits(found, rows)
            worst.offer(found, logits, margin(goal.at(rows), logits), rows)
        return worst.images


def _one(what: str, values: list[Any]) -> None:
    """Refuse (`UsageError`) values that are not all the same."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        raise UsageError(f"Worst needs attacks of one {what}, found {', '.join(map(str, distinct))}")


class _Part(View):
    """Some of the images, as if they were the whole batch."""

    def __init__(self, oracle: Oracle, places: Int[Tensor, " k"], goal: Goal) -> None:
        super().__init__(oracle)
        self._places, self._goal = places, goal.at(places)

    def logits(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """Of these images."""
        return self._oracle.logits(images, self._at(rows))

    def gradient(
        self, images: Images, loss: Loss = cross_entropy, rows: Rows = None, goal: Goal | None = None
    ) -> tuple[Images, Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """Of these images."""
        return self._oracle.gradient(images, loss, self._at(rows), goal)

    def jacobian(
        self, images: Images, rows: Rows = None, classes: Int[Tensor, "n c"] | None = None
    ) -> tuple[Float[Tensor, "n c *shape"], Float[Tensor, "n k"]]:
        """Of these images."""
        return self._oracle.jacobian(images, self._at(rows), classes)

    def verdict(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """Of these images."""
        return self._oracle.verdict(images, self._at(rows))

    def count(self, forwards: Int[Tensor, " k"], backwards: Int[Tensor, " k"], rows: Int[Tensor, " k"]) -> None:
        """Of these images."""
        self._oracle.count(forwards, backwards, self._at(rows))

    def _at(self, rows: Rows) -> Tensor:
        return self._places if rows is None else self._places[rows]
