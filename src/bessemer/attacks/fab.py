"""The fast adaptive boundary attack: steps onto the linearised decision boundary that keep the original in sight.

π is the nearest boundary linearised at x_t, between the true class c and s = argmin_l |z_l − z_c| / ‖∇z_l − ∇z_c‖ (in
the dual norm); δ and δ₀ are the smallest changes of x_t and of the original x₀ that lead onto π ∩ [0, 1]^d:

    α       = min(‖δ‖ / (‖δ‖ + ‖δ₀‖), alpha_max)
    x_{t+1} = clip((1 − α) (x_t + eta · δ) + α (x₀ + eta · δ₀))
    x_{t+1} ← (1 − beta) x₀ + beta · x_{t+1}    wherever x_{t+1} is misclassified, after it was noted

After each restart the nearest point noted is drawn towards the original by three steps of a search on the segment
between them (Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", 2020,
algorithm 1 and "final search"; theirs comes once, at the end: then a restart can make the outcome worse). With
`targets`, π is the boundary to one class at a time, which takes one backward pass a step however many classes there are
(Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, section 5, FAB-T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bessemer import randomness
from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, NearestSeen, Oracle, column
from bessemer.attacks.goal import Goal, joined
from bessemer.errors import UsageError, unknown
from bessemer.threat import THREATS, Threat

# Restarts begin half as far away as the nearest point found, or as these radii where that is less.
RADII = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}
SEARCHES = 3  # of the final search
TINY = 1e-30  # keeps 0/0 out of float32


@dataclass(frozen=True)
class FAB(Attack):
    """The nearest misclassified point, in one norm; the original where none was found.

    norm: `Linf`, `L2` or `L1`. targets: so many runs, each towards one of the likeliest other classes, instead of one
    towards whichever boundary is nearest (0), which takes a backward pass a class. A `target` that the caller asked for
    always wins. restarts: more runs, from random points. enough: an image leaves as soon as a point this near is found
    (0: never). alpha_max: the pull of the original; eta: how far beyond the boundary a step goes; beta: how much of the
    way is kept once the boundary is crossed. Raises `UsageError` for settings that cannot be.
    """

    norm: str = "Linf"
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    enough: float = 0.0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    kind: ClassVar[str] = "minimal"

    def __post_init__(self) -> None:
        if self.norm not in THREATS:
            raise unknown("norm", self.norm, THREATS)
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"FAB needs at least 1 step and 1 restart, found {self.steps} and {self.restarts}")
        if self.targets < 0 or not self.enough >= 0:
            raise UsageError(f"FAB needs targets and enough from 0 upwards, found {self.targets} and {self.enough}")
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise UsageError(
                "FAB needs alpha_max from 0 to 1, eta from 1 upwards and beta between 0 and 1, "
                f"found {self.alpha_max}, {self.eta} and {self.beta}"
            )

    @property
    def _threat(self) -> Threat:
        """Measures changes; its radius plays no part."""
        return THREATS[self.norm](0.0)

    def passes(self, classes: int) -> tuple[int, int]:
        """A look at the originals; a step looks before and after; a final search a restart."""
        steps = self.restarts * max(1, min(self.targets, classes - 1)) * self.steps
        return 1 + 2 * steps + self.restarts * (SEARCHES + 1), steps * (1 if self.targets else classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Every restart towards every target, each only with the images for which no near enough point is known.

        The likeliest target comes first, alone; the others follow side by side, as many as there is room for.
        """
        nearest = NearestSeen(oracle, images, self._threat.size)
        logits = oracle.logits(images)
        nearest.offer(images, logits)  # what is misclassified already is at distance 0, and done
        aims = list(enumerate(self._aims(goal, logits)))
        for restart in range(self.restarts):
            radius = nearest.distance.clamp_max(RADII[self.norm]) / 2
            begin, end = 0, 1
            while begin < len(aims):
                rows = self._open(nearest)
                if not len(rows):
                    return nearest.images
                abreast = aims[begin:end]
                starts = [images[rows]] * len(abreast)
                if restart:
                    starts = [
                        self._random_point(x, radius[rows], randomness.subseed(seed, restart, rank), index[rows])
                        for x, (rank, _) in zip(starts, abreast, strict=True)
                    ]
                aim = joined([aim.at(rows) for _, aim in abreast])
                x, rows = torch.cat(starts), rows.repeat(len(abreast))
                self._run(oracle, nearest, x, images, aim, rows, asked=goal.target is not None)
                begin, end = end, end + oracle.beside(len(self._open(nearest)))
            self._final_search(oracle, nearest, images, goal, losses.margin(goal, logits))
        return nearest.images

    def _aims(self, goal: Goal, logits: Float[Tensor, "n k"]) -> list[Goal]:
        """One for each run of a restart; without a target, a run seeks the nearest boundary."""
        if goal.target is not None or not self.targets:
            return [goal]
        others = logits.scatter(1, goal.labels[:, None], -torch.inf)
        likely = others.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        return [Goal(goal.labels, target) for target in likely.unbind(1)]

    def _open(self, nearest: NearestSeen) -> Int[Tensor, " k"]:
        return (nearest.distance > self.enough).nonzero()[:, 0]

    def _random_point(self, images: Images, radius: Tensor, seed: int, index: Tensor) -> Images:
        """In the box, and at most `radius` away: exactly that far before it is clipped."""
        change = THREATS[self.norm](1.0, box=None).sample(torch.zeros_like(images), seed, index)
        scale = radius / self._threat.size(change).clamp_min(TINY)
        return (images + column(scale, images) * change).clamp(0, 1)

    def _run(
        self,
        oracle: Oracle,
        nearest: NearestSeen,
        x: Images,
        images: Images,
        aim: Goal,
        rows: Int[Tensor, " k"],
        asked: bool,
    ) -> None:
        """One run: offers every point it visits to `nearest`.

        x, aim, rows: of every point, and an image may have several, each with a goal of its own.
        """
        original = images[rows]
        for _ in range(self.steps):
            if not len(rows):
                return
            weights, lead, logits = self._boundary(oracle, x, aim, rows, asked)
            nearest.offer(x, logits, rows)
            lead_of_original = lead + (weights * (original - x)).flatten(1).sum(1)
            change = cheapest_rise(x, weights, -lead, self.norm)
            change_of_original = cheapest_rise(original, weights, -lead_of_original, self.norm)
            near, far = self._threat.size(change), self._threat.size(change_of_original)
            share = column((near / (near + far).clamp_min(TINY)).clamp_max(self.alpha_max), x)
            moved = (1 - share) * (x + self.eta * change) + share * (original + self.eta * change_of_original)
            moved = moved.clamp(0, 1)
            reached = nearest.offer(moved, oracle.logits(moved, rows), rows)
            moved = torch.where(column(reached, x), original + self.beta * (moved - original), moved)
            # where the gradient is zero nothing moves, and nothing ever will
            going = (nearest.distance[rows] > self.enough) & (moved != x).flatten(1).any(1)
            x = moved
            if not going.all():
                rows, aim, x, original = rows[going], aim.at(going), x[going], original[going]

    def _boundary(
        self, oracle: Oracle, x: Images, aim: Goal, rows: Tensor, asked: bool
    ) -> tuple[Images, Float[Tensor, " n"], Float[Tensor, "n k"]]:
        """The decision boundary, linearised at x: the gradient and value of a function that is 0 on it; and the logits.

        The function is a difference of two logits, above 0 beyond the boundary.
        """
        if aim.target is not None:
            # where the caller asks for a class, it has to beat all the others, not only the true one
            weights, logits, lead = oracle.gradient(x, losses.margin if asked else _lead, rows, aim)
            return weights, lead.to(x.dtype), logits
        jacobian, logits = oracle.jacobian(x, rows)
        true = aim.labels[:, None]
        every = torch.arange(len(x), device=x.device)
        differences = jacobian - jacobian[every, true[:, 0]].unsqueeze(1)
        leads = logits - logits.gather(1, true)
        flat = differences.flatten(0, 1)
        dual = (flat * self._threat.steepest(flat)).flatten(1).sum(1).view_as(leads)
        # a boundary without gradient cannot be walked to; the true class has none with itself
        distance = torch.where(dual > 0, leads.abs() / dual, torch.inf).scatter(1, true, torch.inf)
        chosen = distance.argmin(1)
        return differences[every, chosen], leads[every, chosen].to(x.dtype), logits

    def _final_search(
        self, oracle: Oracle, nearest: NearestSeen, images: Images, goal: Goal, margin_of_original: Tensor
    ) -> None:
        """Where the margin, were it linear between the original and the point found, would be just above 0."""
        found = nearest.distance.isfinite() & (nearest.distance > self.enough)
        rows = found.nonzero()[:, 0]
        if not len(rows):
            return
        inner, outer = images[rows], nearest.images[rows]
        inside, outside = margin_of_original[rows], losses.margin(goal.at(rows), oracle.logits(outer, rows))
        for _ in range(SEARCHES):
            # a hundredth short of it: on the boundary itself, rounding decides who wins
            share = 0.99 * (outside / (outside - inside).clamp_min(TINY)).clamp(0, 1)
            between = outer + column(share, outer).to(outer.dtype) * (inner - outer)
            logits = oracle.logits(between, rows)
            reached = nearest.offer(between, logits, rows)
            margin = losses.margin(goal.at(rows), logits)
            inner, outer = (
                torch.where(column(reached, inner), inner, between),
                torch.where(column(reached, outer), between, outer),
            )
            inside, outside = torch.where(reached, inside, margin), torch.where(reached, margin, outside)


def _lead(goal: Goal, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """How far the target leads the true class."""
    assert goal.target is not None
    return (logits.gather(1, goal.target[:, None]) - logits.gather(1, goal.labels[:, None]))[:, 0]


def cheapest_rise(images: Images, weights: Images, rise: Float[Tensor, " n"], norm: str) -> Images:
    """The smallest change of each image, in a norm, that raises ⟨weights, image⟩ by `rise` and stays in [0, 1].

    Onto the hyperplane and the box at once, exactly (Croce and Hein, "Minimally distorted ...", 2020, section 2.2).
    Where the box is too small for the rise, the corner that comes closest to it; where all weights are zero, no change.
    """
    w, x = (weights * column(rise.sign(), weights)).flatten(1), images.flatten(1)
    slope = w.abs()
    largest = slope.amax(1, keepdim=True)
    unit = largest.where(largest > 0, 1.0)
    room = torch.where(w > 0, 1 - x, x).clamp_min(0)
    moves = MOVES[norm](slope / unit, room, rise.abs()[:, None] / unit)
    return (w.sign() * moves).view_as(images)


# Of slope (n, d), room (n, d) and rise (n, 1): the smallest moves with Σ slope · move = rise and 0 ≤ move ≤ room.
Moves = Callable[[Tensor, Tensor, Tensor], Tensor]


def _moves_linf(slope: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """All pixels alike, until they are out of room."""
    return _up_to_a_level(slope, torch.ones_like(slope), room, rise)


def _moves_l2(slope: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """All pixels in proportion to their slopes, until they are out of room."""
    return _up_to_a_level(slope, slope, room, rise)


def _moves_l1(slope: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """The steepest pixels first, each as far as it goes."""
    slope, order = slope.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    gain = slope * room
    missing = rise - (gain.cumsum(1) - gain)
    moves = (missing / slope.clamp_min(TINY)).clamp_min(0).minimum(room)
    return torch.zeros_like(moves).scatter(1, order, moves)


def _up_to_a_level(slope: Tensor, pace: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """min(level · pace, room), with the level at which Σ slope · min(level · pace, room) = rise.

    The sum is concave and piecewise linear in the level, with a kink where a pixel runs out of room: Newton's steps
    from 0 never go too far, and stop on the right piece, mostly after three or four.
    """
    kinks = torch.where(pace > 0, room / pace.clamp_min(TINY), 0)
    full, gain = slope * room, slope * pace
    level, last = torch.zeros_like(rise), kinks.amax(1, keepdim=True)
    while True:
        free = kinks > level
        given = torch.where(free, 0, full).sum(1, keepdim=True)  # by the pixels that are out of room
        growth = torch.where(free, gain, 0).sum(1, keepdim=True)  # by all the others, a unit of level
        higher = ((rise - given) / growth.clamp_min(TINY)).minimum(last)
        climbing = higher > level
        if not climbing.any():
            return (level * pace).minimum(room)
        level = torch.where(climbing, higher, level)


MOVES: dict[str, Moves] = {"Linf": _moves_linf, "L2": _moves_l2, "L1": _moves_l1}
