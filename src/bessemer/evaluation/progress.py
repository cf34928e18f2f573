"""Where an evaluation is: in images, those in work by the share of their passes that are done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bessemer.evaluation.suites import Suite
from bessemer.records import Share

BETWEEN_LOOKS = 0.2  # seconds


@dataclass(frozen=True)
class Stage:
    """What an evaluation is at.

    attack: which one, or empty between batches. done: images so far, those in work by the share of their passes. total:
    of how many (0: not known). standing: running robust accuracy over the attacks and images that are done.
    """

    attack: str
    done: float
    total: int
    standing: Share = Share(0, 0)


class Progress:
    """Follows the work and tells whoever watches."""

    def __init__(self, suite: Suite, watch: Callable[[Stage], None]) -> None:
        self.total, self.done, self.classes = 0, 0, 2
        self._suite, self._watch = suite, watch
        self._attack, self._images = "", 0
        self._seen, self._expected = 0, 1
        self._weight_done = self._weight = 0.0
        self._standing = self._judged = 0
        self._looked = 0.0

    def begin(self, name: str, standing: int, images: int) -> None:
        """An attack on a batch begins, of which so many images are still right."""
        forwards, _ = self._suite.attacks[name].passes(self.classes)
        self._attack, self._images = name, images
        self._seen, self._expected = 0, max(1, forwards * standing)
        self._weight = sum(self._cost(other) for other in self._suite.attacks)
        if name == next(iter(self._suite.attacks)):
            self._weight_done = 0.0
        self.tell(name)

    def passed(self, images: int) -> None:
        """So many images went through the model."""
        self._seen += images
        if time.monotonic() - self._looked >= BETWEEN_LOOKS:
            self.tell(self._attack)

    def finish(self, name: str) -> None:
        """The attack is through with the batch."""
        self._seen = 0
        self._weight_done += self._cost(name)

    def stand(self, standing: int, images: int) -> None:
        """The batch is through, and so many of its images stand."""
        self._standing, self._judged = self._standing + standing, self._judged + images
        self.done, self._images, self._seen = self.done + images, 0, 0

    def tell(self, attack: str) -> None:
        """Let whoever watches know."""
        self._looked = time.monotonic()
        part = min(1.0, self._seen / self._expected) * (self._cost(attack) if attack in self._suite.attacks else 0)
        share = (self._weight_done + part) / self._weight if self._images and self._weight else 0.0
        standing = Share(self._standing, self._judged)
        self._watch(Stage(attack, self.done + share * self._images, self.total, standing))

    def _cost(self, name: str) -> float:
        forwards, backwards = self._suite.attacks[name].passes(self.classes)
        return forwards + 2 * backwards
