"""What wrappers share: an attack around an attack, and a view of the oracle for the attack inside.

`EOT(PGD(...))`, `Transfer(PGD(...), other)`, `EightBit(...)`, `BPDA(...)` and `Worst((...))` change nothing in the
attacks they hold. They hand them an oracle that answers differently: averaged, from another model, about rounded
images, about some of the images. Views stand on views, so wrappers nest: `EOT(BPDA(PGD(...), stage, rest))`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

from jaxtyping import Float, Int
from torch import Tensor

from bessemer.attacks.attack import Attack, Images, Model, Oracle
from bessemer.attacks.goal import Goal, Rows
from bessemer.attacks.losses import Loss, cross_entropy
from bessemer.threat import Threat


class View(Oracle):
    """An oracle that passes its questions on to another one, which counts them.

    What a view changes is what it overrides: the images that are asked about (`_seen`), or a whole answer.
    """

    def __init__(self, oracle: Oracle) -> None:
        vars(self).update(vars(oracle))  # the counters are the same tensors
        self._oracle = oracle

    def asking(self, model: Model | None = None, through: Model | None = None) -> Oracle:
        """The same view of another model, or of this one through another stand-in."""
        other = copy(self)
        other._oracle = self._oracle.asking(model, through)
        other._model, other._through = other._oracle._model, through
        return other

    def classes(self, images: Images) -> int:
        """As the oracle behind."""
        return self._oracle.classes(images)

    def logits(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """Of the images as they are seen."""
        return self._oracle.logits(self._seen(images, rows), rows)

    def gradient(
        self, images: Images, loss: Loss = cross_entropy, rows: Rows = None, goal: Goal | None = None
    ) -> tuple[Images, Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """At the images as they are seen."""
        return self._oracle.gradient(self._seen(images, rows), loss, rows, goal)

    def jacobian(
        self, images: Images, rows: Rows = None, classes: Int[Tensor, "n c"] | None = None
    ) -> tuple[Float[Tensor, "n c *shape"], Float[Tensor, "n k"]]:
        """At the images as they are seen."""
        return self._oracle.jacobian(self._seen(images, rows), rows, classes)

    def verdict(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """On the images as they are seen."""
        return self._oracle.verdict(self._seen(images, rows), rows)

    def count(self, forwards: Int[Tensor, " k"], backwards: Int[Tensor, " k"], rows: Int[Tensor, " k"]) -> None:
        """As the oracle behind."""
        self._oracle.count(forwards, backwards, rows)

    def _seen(self, images: Images, rows: Rows) -> Images:
        return images


@dataclass(frozen=True)
class Wrapped(Attack):
    """An attack around another one, of the same kind and in the same ball."""

    attack: Attack

    @property
    def kind(self) -> str:  # type: ignore[override]
        """As the attack inside."""
        return self.attack.kind

    @property
    def threat(self) -> Threat | None:
        """As the attack inside; None where it has none."""
        return getattr(self.attack, "threat", None)

    def inside(self, threat: Threat) -> Self:
        """The same wrapper around the same attack in another ball."""
        return replace(self, attack=in_ball(self.attack, threat))

    def passes(self, classes: int) -> tuple[int, int]:
        """As the attack inside."""
        return self.attack.passes(classes)

    def remarks(self, classes: int) -> list[str]:
        """As the attack inside."""
        return self.attack.remarks(classes)


def in_ball(attack: Any, threat: Threat) -> Any:
    """The same attack in another ball: an attack with a threat of its own, or a wrapper, which asks what it holds."""
    return attack.inside(threat) if hasattr(attack, "inside") else replace(attack, threat=threat)


def label(function: Callable[..., Any]) -> str:
    """A short name for a model or function, where its own text would fill a page."""
    return getattr(function, "__name__", type(function).__name__)
