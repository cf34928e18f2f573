"""Square attack: change one square of the image at random, keep the change where the loss rises.

    x' = project(x + change of one square),    x ← x' where loss(x') > loss(x)

Andriushchenko, Croce, Flammarion and Hein, "Square attack: a query-efficient black-box adversarial attack via random
search", 2020, algorithms 1 (the search), 2 (Linf) and 3 (L2); for L1 the form of algorithm 3 that Croce and Hein, "Mind
the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021, give. It asks for logits alone, so what
hides gradients does not hide from it.

A square covers a share p of the pixels, halved ever again as the search goes on. The halvings are the authors' code's
for 10,000 queries and scale with the number of queries. From there too: a square that would change nothing (Linf) is
turned into its opposite, so that no query is wasted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bessemer import randomness
from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, Oracle, WorstSeen, column
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import Loss
from bessemer.errors import UsageError
from bessemer.threat import Threat

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
BLOCK = 64  # queries whose random numbers are drawn at once: the generator's own overhead would show otherwise
TILES = 5  # the first guess for L2 and L1 tiles the image, so many to a side
EXCESS = 3  # L1: how far a new square overdraws the radius, before the projection takes the smallest moves back


@dataclass(frozen=True)
class Square(Attack):
    """Random search with squares, by forward passes alone; returns the worst point seen.

    queries: forward passes per image and restart. share: of the pixels, that the first squares cover. loss, and
    targeted_loss where there is a target: `margin`, `cross-entropy`, `dlr`, or a function (goal, logits) -> one value
    per image; the defaults are the authors'. Where an image is not (C, H, W), its pixels are taken as one row, and the
    squares are pieces of that row. Raises `UsageError` for settings that cannot be.
    """

    threat: Threat
    queries: int = 5000
    restarts: int = 1
    share: float = 0.8
    loss: str | Loss = "margin"
    targeted_loss: str | Loss = "cross-entropy"

    kind: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        if self.queries < 1 or self.restarts < 1:
            raise UsageError(f"Square needs at least 1 query and 1 restart, found {self.queries} and {self.restarts}")
        if not 0 < self.share <= 1:
            raise UsageError(f"Square needs a share of the pixels above 0 and up to 1, found {self.share}")
        losses.named(self.loss)
        losses.named(self.targeted_loss)

    def passes(self, classes: int) -> tuple[int, int]:
        """A forward pass a query."""
        return self.restarts * self.queries, 0

    def remarks(self, classes: int) -> list[str]:
        """Whether the loss needs more classes."""
        return losses.remarks(self.loss, classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """All restarts; each goes on only with the images that are still worth trying."""
        worst = WorstSeen(oracle, images, until_success)
        for restart in range(self.restarts):
            rows = worst.open
            if rows is None:
                rows = torch.arange(len(images), device=images.device)
            if len(rows):
                self._run(
                    oracle, worst, images[rows], goal.at(rows), rows, randomness.subseed(seed, restart), index[rows]
                )
        return worst.images

    def share_at(self, query: int) -> float:
        """Of the pixels, that the square of a query (1, 2, …; query 0 asks about the first guess) covers."""
        reached = (query - 1) * 10_000 // self.queries
        return self.share / 2 ** sum(reached > halving for halving in HALVINGS)

    def _run(
        self, oracle: Oracle, worst: WorstSeen, images: Images, goal: Goal, rows: Tensor, seed: int, index: Tensor
    ) -> None:
        """One run, which offers every point it asks about to `worst`."""
        loss = losses.named(self.loss if goal.target is None else self.targeted_loss)
        shape = images.shape[1:]
        originals = images if images.dim() == 4 else images.reshape(len(images), 1, 1, -1)
        squares = SQUARES[self.threat.norm](self.threat, originals)
        x = candidate = squares.first(originals, randomness.subseed(seed, 0), index)
        best = images.new_full((len(images),), -torch.inf)
        share, draws = 0.0, images.new_empty(len(images), 0)
        for query in range(self.queries):
            if query > 0:
                if share != self.share_at(query):
                    share = self.share_at(query)
                    squares.resize(share)
                block, place = divmod(query - 1, BLOCK)
                if place == 0:
                    wanted = (BLOCK, squares.numbers)
                    draws = randomness.uniform(wanted, randomness.subseed(seed, 1, block), index)
                candidate = squares.propose(x, originals, draws[:, place])
            asked = candidate.view(-1, *shape)
            logits = oracle.logits(asked, rows)
            values = loss(goal, logits)
            reached = worst.offer(asked, logits, values, rows)
            better = values > best
            best = torch.where(better, values, best)
            x = torch.where(column(better, x), candidate, x)
            if worst.until_success and reached.any():
                going = (~reached).nonzero()[:, 0]
                if not len(going):
                    return
                x, best, originals, goal = x[going], best[going], originals[going], goal.at(going)
                rows, index, draws = rows[going], index[going], draws[going]


class _Squares(ABC):
    """What a norm makes of a square: the first guess, and the change of one square. Images are (N, C, H, W) here.

    numbers: how many random numbers a query needs for each image: four for places, one for the orientation, then one a
    channel. high, wide: of a square, in pixels.
    """

    odd: ClassVar[bool]

    def __init__(self, threat: Threat, images: Images) -> None:
        self.threat = threat
        self.channels, self.height, self.width = images.shape[1:]
        self.numbers = 5 + self.channels
        self.like = images.new_empty(0)
        self.high = self.wide = 1

    def resize(self, share: float) -> None:
        """From now on, squares cover so much of the image; as much of a row where the image is too low for a square."""
        area = share * self.height * self.width
        side = max(1, round(math.sqrt(area)))
        if self.odd:
            side = max(3, side | 1)
        short, long = sorted((self.height, self.width))
        if side <= short:
            self.high = self.wide = side
        else:
            length = min(long, max(1, round(area / short)))
            self.high, self.wide = (short, length) if self.height <= self.width else (length, short)

    @abstractmethod
    def first(self, images: Images, seed: int, index: Tensor) -> Images:
        """Where the search begins."""

    @abstractmethod
    def propose(self, x: Images, images: Images, draws: Float[Tensor, "n numbers"]) -> Images:
        """The points with one square changed."""

    def _corner(self, draws: Float[Tensor, "n 2"]) -> tuple[Tensor, Tensor]:
        """The first row and column of each image's square, uniform over all that fit."""
        down, right = self.height - self.high + 1, self.width - self.wide + 1
        return (draws[:, :1] * down).long(), (draws[:, 1:] * right).long()


class _Corners(_Squares):
    """Linf: every pixel is at one end of its interval, and a square takes one end per channel (algorithm 2)."""

    odd = False

    def first(self, images: Images, seed: int, index: Tensor) -> Images:
        """Vertical stripes, one pixel wide."""
        shape = (self.channels, 1, self.width)
        return self._end(images, _signs(randomness.uniform(shape, seed, index), images))

    def propose(self, x: Images, images: Images, draws: Float[Tensor, "n numbers"]) -> Images:
        """A step of ±2 eps from one end of the interval, clipped, is the other end or none."""
        top, left = self._corner(draws[:, :2])
        row, col = (torch.arange(length, device=x.device) for length in (self.height, self.width))
        across = (row >= top) & (row < top + self.high)
        along = (col >= left) & (col < left + self.wide)
        inside = across[:, None, :, None] & along[:, None, None, :]
        signs = _signs(draws[:, 5:], x)[:, :, None, None]
        candidate = torch.where(inside, self._end(images, signs), x)
        idle = (candidate == x).flatten(1).all(1).nonzero()[:, 0]
        if len(idle):
            candidate[idle] = torch.where(inside[idle], self._end(images[idle], -signs[idle]), x[idle])
        return candidate

    def _end(self, images: Images, signs: Tensor) -> Images:
        return self.threat.project(images + self.threat.eps * signs, images)


class _Bumps(_Squares):
    """L2: what two squares used of the radius goes to one of them, shaped as two bumps (algorithm 3)."""

    odd = True
    power: ClassVar[int] = 2
    excess: ClassVar[float] = 1.0

    def first(self, images: Images, seed: int, index: Tensor) -> Images:
        """Bumps of random sign on a grid of tiles."""
        self.high, self.wide = max(1, self.height // TILES), max(1, self.width // TILES)
        self._reshape()
        down, right = math.ceil(self.height / self.high), math.ceil(self.width / self.wide)
        draws = randomness.uniform((1 + self.channels, down, right), seed, index)
        beside, above = self.shapes[:, None, :, None, :]
        tiles = torch.where(draws[:, :1, :, None, :, None] < 0.5, beside, above)
        change = (tiles * _signs(draws[:, 1:, :, None, :, None], images)).flatten(4, 5).flatten(2, 3)
        change = change[:, :, : self.height, : self.width]
        unit = change / column(self.threat.size(change), change)
        return self._settle(images + self.excess * self.threat.eps * unit, images)

    def resize(self, share: float) -> None:
        """The bumps change with the square."""
        super().resize(share)
        self._reshape()

    def propose(self, x: Images, images: Images, draws: Float[Tensor, "n numbers"]) -> Images:
        """Both squares are emptied, the first takes all that they held and its channel's part of what is unused."""
        change = (x - images).flatten(2)
        unused = (self.threat.eps**self.power - self._held(change.flatten(1))).clamp_min(0)
        receiver, donor = self._places(draws[:, :2]), self._places(draws[:, 2:4])
        old = change.gather(2, receiver)
        change.scatter_(2, receiver, 0)
        held = self._held(old) + self._held(change.gather(2, donor))
        change.scatter_(2, donor, 0)
        beside, above = self.shapes.flatten(1)
        new = torch.where(draws[:, 4, None] < 0.5, beside, above)[:, None]
        new = new * _signs(draws[:, 5:], x)[:, :, None] + _unit(old, self.power)
        available = (held + unused[:, None] / self.channels) ** (1 / self.power)
        new = _unit(new, self.power) * (self.excess * available)[:, :, None]
        change.scatter_(2, receiver, new)
        return self._settle(images + change.view_as(x), images)

    def _reshape(self) -> None:
        """The bumps side by side, and one above the other; each of size 1."""
        beside = _two_bumps(self.high, self.wide)
        above = _two_bumps(self.wide, self.high).T
        self.shapes = _unit(torch.stack([beside, above]).flatten(1), self.power).view(2, self.high, self.wide)
        self.shapes = self.shapes.to(self.like)

    def _places(self, draws: Float[Tensor, "n 2"]) -> Tensor:
        """Where in the flattened image the pixels of each image's square lie, for every channel."""
        top, left = self._corner(draws)
        row = torch.arange(self.high, device=draws.device)[:, None]
        col = torch.arange(self.wide, device=draws.device)
        square = (row * self.width + col).flatten()
        return (top * self.width + left + square)[:, None].expand(-1, self.channels, -1)

    def _held(self, change: Tensor) -> Tensor:
        """What a change takes of eps to the power."""
        return change.abs().pow(self.power).sum(-1)

    def _settle(self, x: Images, images: Images) -> Images:
        return self.threat.project(x, images)


class _SparseBumps(_Bumps):
    """L1: as for L2, but new squares overdraw the radius, and the projection leaves their tallest pixels."""

    power = 1
    excess = EXCESS

    def _settle(self, x: Images, images: Images) -> Images:
        return self.threat.project(x, images)


SQUARES: dict[str, type[_Squares]] = {"Linf": _Corners, "L2": _Bumps, "L1": _SparseBumps}


def _two_bumps(high: int, wide: int) -> Float[Tensor, "high wide"]:
    """Two bumps of opposite signs, side by side (section 3.4)."""
    left = wide // 2
    return torch.cat([_bump(high, left), -_bump(high, wide - left)], 1)


def _bump(high: int, wide: int) -> Float[Tensor, "high wide"]:
    """A sum of 1 / (n + 1 − k)² for k = 0 … n − distance from the centre, with n half the longer side (equation 2)."""
    half = max(high, wide) // 2
    heights = (1 / torch.arange(1, half + 2).square()).flip(0).cumsum(0).flip(0)  # at distance 0, 1, …, half
    down, right = (torch.arange(length) - length // 2 for length in (high, wide))
    return heights[torch.maximum(down.abs()[:, None], right.abs()[None])]


def _signs(draws: Tensor, like: Images) -> Tensor:
    return (draws - 0.5).sign().to(like.dtype)  # a draw is never a half before it is rounded to a shorter type


def _unit(change: Tensor, power: int) -> Tensor:
    """Size 1 along the last dimension; nothing where there is nothing."""
    return change / torch.linalg.vector_norm(change, power, dim=-1, keepdim=True).clamp_min(1e-12)
