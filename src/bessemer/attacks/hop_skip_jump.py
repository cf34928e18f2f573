"""HopSkipJump: along the decision boundary towards the image, by the predicted class alone.

With x* the image, phi(x) = 1 where x is misclassified and −1 elsewhere, and x_t a misclassified point at the boundary:

    g  = sum over b of (phi(x_t + delta u_b) − mean phi) u_b        u_b uniform on the unit sphere
    v  = g / ‖g‖₂ (L2) or sign(g) (Linf)
    x' = x_t + xi v,  xi = ‖x_t − x*‖ / √t, halved until x' is misclassified
    x_{t+1} = bisection between x* and x'

Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", 2020, algorithm 2, with the
estimate of equation 16, delta = ‖x' − x*‖ / d for d pixels, and initial_queries · √t directions in round t. The
bisection goes on to a share d^(−3/2) (L2) or d^(−2) (Linf) of the way, or as far as float32 can tell points apart. What
is returned lies a thousandth further from x* than the nearest point found, so that rounding does not undo it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bessemer import randomness
from bessemer.attacks.attack import Attack, Images, NearestSeen, Oracle, column
from bessemer.attacks.goal import Goal
from bessemer.attacks.spsa import CHUNK, ask
from bessemer.errors import UsageError
from bessemer.threat import THREATS, Threat

FEWEST, MOST = 10, 24  # bisections: to a thousandth at least, to what float32 can tell apart at most
SHORTENINGS = 24  # of a step; after that the boundary point itself stays
CLEAR = 1.001  # times the distance found is what is returned


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """The nearest misclassified image found by a walk along the boundary; the original where no walk could start.

    norm: `L2` or `Linf`, in which the walk comes nearer. steps: rounds of the walk. initial_queries: directions asked
    about in the first round, growing with the root of the round up to max_queries_per_step. start_draws: images of
    uniform noise that are tried for a first misclassified point. An image that is misclassified as it is comes back
    unchanged. Raises `UsageError` for settings that cannot be, and for targets: those need an image of the target class
    to start from.
    """

    norm: str = "L2"
    steps: int = 50
    initial_queries: int = 100
    max_queries_per_step: int = 10_000
    start_draws: int = 100

    kind: ClassVar[str] = "minimal"

    def __post_init__(self) -> None:
        if self.norm not in ("L2", "Linf"):
            raise UsageError(f"HopSkipJump walks in L2 or Linf, not in {self.norm!r}")
        smallest = min(self.steps, self.initial_queries, self.max_queries_per_step, self.start_draws)
        if smallest < 1:
            raise UsageError(
                f"HopSkipJump needs steps, initial_queries, max_queries_per_step and start_draws from 1 upwards, found "
                f"{self.steps}, {self.initial_queries}, {self.max_queries_per_step} and {self.start_draws}"
            )

    def passes(self, classes: int) -> tuple[int, int]:
        """The image itself, the draws, the directions, shortenings and bisections of each round, and a last look."""
        directions = sum(self._directions(step) for step in range(1, self.steps + 1))
        return 2 + self.start_draws + MOST + directions + self.steps * (SHORTENINGS + MOST), 0

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Every image walks at its own place; all are in the same round."""
        if goal.target is not None:
            raise UsageError("HopSkipJump needs an image of the target class to start from; call it without a target")
        nearest = NearestSeen(oracle, images, self._threat.size)
        rows = torch.arange(len(images), device=images.device)
        rows = rows[~nearest.offer(images, oracle.logits(images, rows), rows)]
        x, rows = self._start(oracle, nearest, images, rows, randomness.subseed(seed, 0), index)
        if not len(rows):
            return nearest.images
        originals, places, wanted = images[rows], index[rows], goal.at(rows)
        for step in range(1, self.steps + 1):
            distance = self._threat.size(x - originals)
            x = self._boundary(oracle, nearest, x, originals, rows)
            key = randomness.subseed(seed, step)
            gradient = self._gradient(oracle, x, distance / x[0].numel(), wanted, rows, step, key, places)
            x = self._leap(oracle, nearest, x, self._threat.steepest(gradient), originals, rows, step)
        self._boundary(oracle, nearest, x, originals, rows)
        return self._clear(oracle, nearest.images, originals, rows)

    @property
    def _threat(self) -> Threat:
        return THREATS[self.norm](0.0)  # measures and points; its radius plays no part

    def _directions(self, step: int) -> int:
        return min(int(self.initial_queries * math.sqrt(step)), self.max_queries_per_step)

    def _start(
        self, oracle: Oracle, nearest: NearestSeen, images: Images, rows: Tensor, seed: int, index: Tensor
    ) -> tuple[Images, Tensor]:
        """The first noise that is misclassified, image by image, and which images have one."""
        x = images.clone()
        for draw in range(self.start_draws):
            if not len(rows):
                break
            shape = tuple(images.shape[1:])
            noise = randomness.uniform(shape, randomness.subseed(seed, draw), index[rows], images.dtype)
            reached = nearest.offer(noise, oracle.logits(noise, rows), rows)
            x[rows[reached]] = noise[reached]
            rows = rows[~reached]
        started = ((nearest.distance > 0) & nearest.distance.isfinite()).nonzero()[:, 0]
        return x[started], started

    def _boundary(self, oracle: Oracle, nearest: NearestSeen, x: Images, originals: Images, rows: Tensor) -> Images:
        """A misclassified point next to one that is not, on the way from `x` to the image."""
        pixels = x[0].numel()
        exponent = 1.5 if self.norm == "L2" else 2.0
        low, high = torch.zeros(2, len(x), device=x.device, dtype=x.dtype)
        high += 1
        found = x
        for _ in range(min(max(math.ceil(exponent * math.log2(pixels)), FEWEST), MOST)):
            middle = (low + high) / 2
            candidate = self._between(originals, x, middle)
            reached = nearest.offer(candidate, oracle.logits(candidate, rows), rows)
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
            found = torch.where(column(reached, x), candidate, found)
        return found

    def _between(self, originals: Images, x: Images, share: Tensor) -> Images:
        """A share of the way to `x`: on the line for L2; for Linf `x` cut to that share of its distance."""
        change = x - originals
        if self.norm == "L2":
            return originals + column(share, x) * change
        radius = column(share * self._threat.size(change), x)
        return originals + change.clamp(-radius, radius)

    def _gradient(
        self,
        oracle: Oracle,
        x: Images,
        delta: Tensor,
        goal: Goal,
        rows: Tensor,
        step: int,
        seed: int,
        index: Tensor,
    ) -> Images:
        """A direction away from the original's class, by the votes of points around `x`."""
        count = self._directions(step)
        votes, moves, both = torch.zeros_like(delta), torch.zeros_like(x), torch.zeros_like(x)
        at_once = max(1, CHUNK // max(1, x.numel()))
        for first in range(0, count, at_once):
            number = torch.arange(first, min(first + at_once, count), device=x.device)
            noise = randomness.normal(tuple(x.shape[1:]), seed, (index[:, None] * count + number).flatten(), x.dtype)
            unit = THREATS["L2"](0.0).steepest(noise).view(len(x), -1, *x.shape[1:])
            points = (x[:, None] + column(delta, unit) * unit).clamp(0, 1)
            logits = ask(oracle, points, rows)
            each = torch.arange(len(x), device=x.device).repeat_interleave(len(number))
            vote = 2 * goal.at(each).reached(logits.flatten(0, 1)).view(len(x), -1).to(x.dtype) - 1
            unit = (points - x[:, None]) / column(delta.clamp_min(1e-30), unit)  # what clipping and rounding left
            votes += vote.sum(1)
            moves += unit.sum(1)
            both += torch.einsum("nk,nk...->n...", vote, unit)
        # where all votes are the same there is no difference to learn from: towards their mean, or away from it
        mean = votes / count
        return torch.where(column(mean.abs() == 1, x), both, both - column(mean, x) * moves)

    def _leap(
        self,
        oracle: Oracle,
        nearest: NearestSeen,
        x: Images,
        direction: Images,
        originals: Images,
        rows: Tensor,
        step: int,
    ) -> Images:
        """From the boundary into the wrong class, as far as the round allows; nowhere where no step stays there."""
        found = x.clone()
        length = self._threat.size(x - originals) / math.sqrt(step)
        going = torch.arange(len(x), device=x.device)
        for _ in range(SHORTENINGS):
            candidate = (x[going] + column(length[going], x) * direction[going]).clamp(0, 1)
            reached = nearest.offer(candidate, oracle.logits(candidate, rows[going]), rows[going])
            found[going[reached]] = candidate[reached]
            going = going[~reached]
            if not len(going):
                break
            length = length / 2
        return found

    @staticmethod
    def _clear(oracle: Oracle, found: Images, originals: Images, rows: Tensor) -> Images:
        """The points found, a thousandth further away where that is misclassified too.

        They lie so near the boundary that a batch of another size, with logits rounded differently, would disagree.
        """
        further = (originals + CLEAR * (found[rows] - originals)).clamp(0, 1)
        reached = oracle.reached(further, oracle.logits(further, rows), rows)
        found[rows[reached]] = further[reached]
        return found
