"""APGD: projected gradient descent that chooses its own steps, image by image, from how the loss goes.

For Linf and L2 it climbs with momentum, and where progress stalls it halves the step and returns to the best point so
far (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, section 3, algorithm 1). With step size eta, alpha = 0.75 and P the projection:

    z_{t+1} = P(x_t + eta · direction(∇_x E(x_t)))
    x_{t+1} = P(x_t + alpha · (z_{t+1} − x_t) + (1 − alpha) · (x_t − x_{t−1}))

For L1 it moves the k steepest pixels, ever fewer, and projects onto the ball and the box at once (Croce and Hein, "Mind
the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021, section 3):

    x_{t+1} = P(x_t + eta · s / ‖s‖₁),    s the signs of the k largest entries of ∇_x E(x_t)

It does so in the balls of radius 3 eps, 2 eps and eps, each from the best point of the one before. Pixels that the box
holds back have no part in s; that is ours.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bessemer import randomness
from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, Oracle, WorstSeen, column
from bessemer.attacks.goal import Goal, Rows, joined
from bessemer.attacks.losses import Loss
from bessemer.errors import UsageError
from bessemer.threat import L1, Threat


@dataclass(frozen=True)
class APGD(Attack):
    """Climb a loss inside the ball with no step size to choose; returns the worst point seen.

    loss: `cross-entropy`, `margin`, `dlr`, or a function (goal, logits) -> one value per image. restarts: runs from
    random points, united image by image. targets: if above 0, each run becomes as many, towards the classes that are
    most likely for the clean image (all other classes where there are fewer); success is still what the caller asked
    for, and the caller's own `target` takes the place of them all. rho: the share of steps that must climb between two
    checkpoints for the step size to stay (Linf and L2).
    Raises `UsageError` for settings that cannot be.
    """

    threat: Threat
    steps: int = 100
    restarts: int = 1
    loss: str | Loss = "cross-entropy"
    targets: int = 0
    rho: float = 0.75

    kind: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise UsageError(
                "APGD needs at least 1 step, 1 restart and 0 targets, "
                f"found {self.steps}, {self.restarts} and {self.targets}"
            )
        if not 0 < self.rho <= 1:
            raise UsageError(f"APGD needs a rho above 0 and up to 1, found {self.rho}")
        losses.named(self.loss)

    def passes(self, classes: int) -> tuple[int, int]:
        """A gradient a step and a look at the last point, run by run; targets look at the clean image first."""
        runs = self.restarts * max(1, min(self.targets, classes - 1))
        return runs * (self.steps + 1) + (self.targets > 0), runs * self.steps

    def remarks(self, classes: int) -> list[str]:
        """Whether there are classes enough for the loss and the targets."""
        told = losses.remarks(self.loss, classes, targeted=self.targets > 0)
        if self.targets > classes - 1:
            told.append(f"{self.targets} targets were asked for, the model has {classes - 1} other classes")
        return told

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Every goal, every restart; each goes on only with the images that are still worth trying.

        Most images that fall do so on the way to the likeliest target, which comes first, alone. The others follow side
        by side, as many as there is room for.
        """
        worst = WorstSeen(oracle, images, until_success)
        goals = list(enumerate(self._goals(oracle, worst, images, goal)))
        begin, end = 0, 1
        while begin < len(goals):
            abreast = goals[begin:end]
            for restart in range(self.restarts):
                rows = worst.open
                if rows is None and len(abreast) > 1:
                    rows = torch.arange(len(images), device=images.device)
                if rows is not None and not len(rows):
                    return worst.images
                originals, places = (images, index) if rows is None else (images[rows], index[rows])
                seeds = [randomness.subseed(seed, number, restart) for number, _ in abreast]
                walk = self._walk(originals, seeds, places)
                aimed = joined([aim.at(rows) for _, aim in abreast])
                self._climb(oracle, worst, walk, aimed, None if rows is None else rows.repeat(len(abreast)))
            going = worst.open
            begin, end = end, end + oracle.beside(len(images) if going is None else len(going))
        return worst.images

    def _goals(self, oracle: Oracle, worst: WorstSeen, images: Images, goal: Goal) -> list[Goal]:
        """What to climb towards: as asked, or the likeliest other classes in turn."""
        if not self.targets or goal.target is not None:
            return [goal]
        logits = oracle.logits(images)
        # an image that is wrong already counts, but at no value: any wrong point of a run takes its place
        worst.offer(images, logits, logits.new_full((len(logits),), -torch.inf))
        others = logits.scatter(1, goal.labels[:, None], -torch.inf).argsort(stable=True, dim=1, descending=True)
        return [Goal(goal.labels, target) for target in others[:, :-1][:, : self.targets].unbind(1)]

    def _walk(self, originals: Images, seeds: Sequence[int], index: Tensor) -> _Walk:
        if isinstance(self.threat, L1):
            return _Sparse(self.threat, originals, seeds, index, self.steps)
        return _Halving(self.threat, originals, seeds, index, self.steps, self.rho)

    def _climb(self, oracle: Oracle, worst: WorstSeen, walk: _Walk, aimed: Goal, rows: Rows) -> None:
        """One run: offers every point it visits inside the threat's own ball to `worst`.

        rows, aimed: of every point, and an image may have several, each with a goal of its own.
        """
        loss = losses.named(self.loss)
        for step in range(self.steps):
            gradient, logits, values = oracle.gradient(walk.x, loss, rows, aimed)
            walk.see(gradient, values)
            if walk.threat == self.threat:
                reached = worst.offer(walk.x, logits, values, rows)
                if rows is not None and worst.until_success and reached.any():
                    going = worst.is_open(rows)
                    rows, aimed = rows[going], aimed.at(going)
                    walk.keep(going)
                    if not len(rows):
                        return
            walk.advance(step)
        logits = oracle.logits(walk.x, rows)
        worst.offer(walk.x, logits, loss(aimed, logits), rows)


class _Walk(ABC):
    """Where each image of one run is, the gradient and loss there, and the best point it has seen, by the loss alone.

    It starts at a random point as far from the image as the ball goes, box aside; with several seeds, every image at
    one point a seed. `threat` is the ball it walks in.
    """

    def __init__(self, threat: Threat, originals: Images, seeds: Sequence[int], index: Tensor) -> None:
        none, unboxed = torch.zeros_like(originals), replace(threat, box=None)
        change = torch.cat([unboxed.sample(none, seed, index) for seed in seeds])
        originals = torch.cat([originals] * len(seeds))
        self.threat, self.originals = threat, originals
        size = threat.size(change).clamp_min(1e-30)
        self.x = self.project(originals + change * column(threat.eps / size, change))
        self.forget()

    def forget(self) -> None:
        """Nothing has been seen yet."""
        self.gradient = self.best = self.best_gradient = self.x
        self.value = self.x.new_full((len(self.x),), torch.inf)  # no first point climbs above it
        self.best_value = -self.value

    def see(self, gradient: Images, values: Float[Tensor, " n"]) -> None:
        """Take in the gradient and the loss at `x`."""
        self.gradient, self.value = gradient, values.to(self.value.dtype)
        better = self.value > self.best_value
        self.best_value = torch.where(better, self.value, self.best_value)
        self.best = torch.where(column(better, self.x), self.x, self.best)
        self.best_gradient = torch.where(column(better, self.x), gradient, self.best_gradient)

    def keep(self, going: Bool[Tensor, " n"]) -> None:
        """Go on with some of the images."""
        for name, held in vars(self).items():
            if isinstance(held, Tensor):
                setattr(self, name, held[going])

    def return_to_best(self, these: Bool[Tensor, " n"]) -> None:
        """Some images go on from their best point, whose gradient and loss are known."""
        self.x = torch.where(column(these, self.x), self.best, self.x)
        self.gradient = torch.where(column(these, self.x), self.best_gradient, self.gradient)
        self.value = torch.where(these, self.best_value, self.value)

    def project(self, x: Images) -> Images:
        """Back to where the attacker may be."""
        return self.threat.project(x, self.originals)

    @abstractmethod
    def advance(self, step: int) -> None:
        """Adapt to what was seen at step 0, 1, …, and move."""


class _Halving(_Walk):
    """Linf and L2: a step size of 2 eps, halved at the checkpoints that found too little progress."""

    def __init__(
        self, threat: Threat, originals: Images, seeds: Sequence[int], index: Tensor, steps: int, rho: float
    ) -> None:
        super().__init__(threat, originals, seeds, index)
        self.periods, self.rho = periods(steps), rho
        self.previous = self.x
        self.step_size = torch.full_like(self.value, 2 * threat.eps)
        self.climbs = torch.zeros_like(self.value)
        self.halved = torch.zeros_like(self.value, dtype=torch.bool)
        self.best_before = self.best_value

    def see(self, gradient: Images, values: Float[Tensor, " n"]) -> None:
        """Steps that climbed are counted."""
        self.climbs = self.climbs + (values.to(self.value.dtype) > self.value)
        super().see(gradient, values)

    def advance(self, step: int) -> None:
        """A checkpoint, if it is time for one; then a step along the gradient and the step before."""
        if step == 0:
            self.best_before = self.best_value
        elif step in self.periods:
            self._check(self.periods[step])
        alpha = 0.75 if step else 1.0  # nothing went before the first step
        z = self.project(self.x + column(self.step_size, self.x) * self.threat.steepest(self.gradient))
        moved = self.x + alpha * (z - self.x) + (1 - alpha) * (self.x - self.previous)
        self.previous, self.x = self.x, self.project(moved)

    def _check(self, period: int) -> None:
        """Condition 1: too few steps climbed. Condition 2: neither the step size nor the best loss has changed."""
        few = self.climbs < self.rho * period
        stuck = ~self.halved & (self.best_value <= self.best_before)
        self.halved = few | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.return_to_best(self.halved)
        self.climbs, self.best_before = torch.zeros_like(self.climbs), self.best_value


class _Sparse(_Walk):
    """L1: steps on the steepest pixels, fewer as the best point becomes sparser, in balls that become narrower."""

    support: Int[Tensor, " n"]
    kept: Int[Tensor, " n"]

    def __init__(self, threat: Threat, originals: Images, seeds: Sequence[int], index: Tensor, steps: int) -> None:
        # three tenths of the steps in each of the wider balls; a run of less than 4 steps has no time for them
        self.steps, self.wide = steps, 3 * steps // 10
        self.narrower = {self.wide: replace(threat, eps=2 * threat.eps), 2 * self.wide: threat} if self.wide else {}
        super().__init__(replace(threat, eps=3 * threat.eps) if self.wide else threat, originals, seeds, index)
        self._enter(0)
        # before anything is known, a fifth of the pixels
        self.support = torch.full_like(self.support, originals[0].numel())
        self.kept = self.support // 5

    def advance(self, step: int) -> None:
        """Into the next ball, if it is time for that; or else a check, if it is time for one, and a sparse step."""
        if step + 1 in self.narrower:
            self.threat = self.narrower[step + 1]
            self.x = self.project(self.best)
            self.forget()
            self._enter(step + 1)
            return
        if step > self.entered and (step - self.entered) % self.period == 0:
            self._check()
        flat = self.gradient.flatten(1)
        if self.threat.box is not None:
            low, high = self.threat.box
            x = self.x.flatten(1)
            # a pixel that the box holds back would take a place among the steepest and gain nothing (the paper's s
            # leaves it in: on linear models in a box it then stops far from the optimum)
            flat = flat.masked_fill(((x <= low) & (flat < 0)) | ((x >= high) & (flat > 0)), 0)
        steepness = flat.abs()
        place = (self.kept.clamp_min(1) - 1)[:, None]
        least = steepness.sort(dim=1, descending=True).values.gather(1, place)
        signs = flat.sign().where(steepness >= least, 0)
        direction = signs / signs.abs().sum(1, keepdim=True).clamp_min(1)
        self.x = self.project(self.x + column(self.step_size, self.x) * direction.view_as(self.x))

    def _enter(self, step: int) -> None:
        """A ball that the walk now begins in, from `x`."""
        self.entered = step
        length = self.wide if step < 2 * self.wide else self.steps - 2 * self.wide
        self.period = max(1, length // 25)
        self.step_size = torch.full_like(self.value, self.threat.eps)
        self._suit(self.x)

    def _suit(self, x: Images) -> None:
        """Two thirds of the pixels that a point has moved are what the next steps move."""
        self.support = (x != self.originals).flatten(1).sum(1)
        self.kept = self.support * 2 // 3

    def _check(self) -> None:
        """Where the best point has become sparser, back to it with the full step size; elsewhere smaller steps."""
        before = self.support
        self._suit(self.best)
        sparser = self.support < 0.95 * before
        smaller = (self.step_size / 1.5).clamp_min(self.threat.eps / 10)
        self.step_size = torch.where(sparser, self.threat.eps, smaller)
        self.return_to_best(sparser)


def periods(steps: int) -> dict[int, int]:
    """The checkpoints of a run, each with the number of steps since the one before.

    ceil(p_j · steps) with p_0 = 0, p_1 = 0.22 and p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), in whole per cent.
    """
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    places = sorted({-(-each * steps // 100) for each in percent if each < 100})
    return {place: place - before for before, place in itertools.pairwise(places)}
