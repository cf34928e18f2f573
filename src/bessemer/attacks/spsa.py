"""SPSA: gradient ascent without gradients, from differences along random signs.

    g = mean over v of (loss(x + delta · v) − loss(x − delta · v)) / (2 delta) · v,    v_i = ±1
    x ← project(x + Adam(g))

Uesato, O'Donoghue, van den Oord and Kohli, "Adversarial risk and the dangers of being evaluated against weak attacks",
2018, algorithm 1, with the margin loss and Adam's update that they use (section 4.2). Spall's simultaneous perturbation
stochastic approximation (1992) gives the estimate: right on average for a smooth loss, whatever hides its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bessemer import randomness
from bessemer.attacks import losses
from bessemer.attacks.attack import Attack, Images, Oracle, WorstSeen
from bessemer.attacks.goal import Goal
from bessemer.attacks.losses import Loss
from bessemer.errors import UsageError
from bessemer.threat import L1, Threat

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam's decays, and what keeps it from dividing by zero
CHUNK = 1 << 21  # numbers per batch of perturbed images: 8 MB in float32, several times that while they are drawn
BITS = 16  # signs taken from one random number


@dataclass(frozen=True)
class SPSA(Attack):
    """Adam along estimated gradients, by forward passes alone; returns the worst point seen.

    samples: random directions a step, each asked about both ways. delta: how far each pixel moves for that, in [0, 1]
    units; these questions may leave the ball and the box, the points that count do not. learning_rate: of Adam, about
    how far a pixel moves a step, in the same units. loss: `margin`, `cross-entropy`, `dlr`, or a function
    (goal, logits) -> one value per image. In an L2 ball Adam, which moves all pixels about alike, stays short of the
    optimum that normalised steps would reach. Raises `UsageError` for settings that cannot be, and for L1: Adam moves
    every pixel alike.
    """

    threat: Threat
    steps: int = 100
    samples: int = 128
    delta: float = 0.01
    learning_rate: float = 0.01
    loss: str | Loss = "margin"

    kind: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1:
            raise UsageError(f"SPSA needs at least 1 step and 1 sample, found {self.steps} and {self.samples}")
        if not (self.delta > 0 and self.learning_rate > 0):
            raise UsageError(
                f"SPSA needs a delta and a learning_rate above 0, found {self.delta} and {self.learning_rate}"
            )
        if isinstance(self.threat, L1):
            raise UsageError("SPSA moves every pixel alike, which an L1 ball has no room for; take Square for L1")
        losses.named(self.loss)

    def passes(self, classes: int) -> tuple[int, int]:
        """Two a direction, and one for the point itself, every step."""
        return self.steps * (2 * self.samples + 1), 0

    def remarks(self, classes: int) -> list[str]:
        """Whether the loss needs more classes."""
        return losses.remarks(self.loss, classes)

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """Ascent from the image itself."""
        loss = losses.named(self.loss)
        worst = WorstSeen(oracle, images, until_success)
        rows = torch.arange(len(images), device=images.device)
        x, originals = images, images
        mean = square = torch.zeros_like(images)
        for step in range(1, self.steps + 1):
            gradient = self.estimate(oracle, x, goal.at(rows), rows, randomness.subseed(seed, step), index)
            mean = FIRST * mean + (1 - FIRST) * gradient
            square = SECOND * square + (1 - SECOND) * gradient.square()
            size = (square / (1 - SECOND**step)).sqrt()
            x = self.threat.project(x + self.learning_rate * mean / (1 - FIRST**step) / (size + TINY), originals)
            logits = oracle.logits(x, rows)
            reached = worst.offer(x, logits, loss(goal.at(rows), logits), rows)
            if until_success and reached.any():
                going = (~reached).nonzero()[:, 0]
                if not len(going):
                    break
                x, originals, mean, square = x[going], originals[going], mean[going], square[going]
                rows, index = rows[going], index[going]
        return worst.images

    def estimate(self, oracle: Oracle, x: Images, goal: Goal, rows: Tensor, seed: int, index: Tensor) -> Images:
        """The gradient of the loss at `x`, from `samples` random directions."""
        loss = losses.named(self.loss)
        total = torch.zeros_like(x)
        at_once = max(1, CHUNK // (2 * max(1, x.numel())))
        for first in range(0, self.samples, at_once):
            number = torch.arange(first, min(first + at_once, self.samples), device=x.device)
            directions = signs(x, seed, index[:, None] * self.samples + number)
            moves = self.delta * directions
            logits = ask(oracle, x[:, None] + torch.cat([moves, -moves], 1), rows)
            each = torch.arange(len(x), device=x.device).repeat_interleave(logits.shape[1])
            ahead, behind = loss(goal.at(each), logits.flatten(0, 1)).view(len(x), 2, -1).unbind(1)
            # a NaN says nothing about the slope, and must not reach the image
            slopes = ((ahead - behind).to(x.dtype) / (2 * self.delta)).nan_to_num(0, 0, 0)
            total += torch.einsum("nk,nk...->n...", slopes, directions)
        return total / self.samples


def ask(oracle: Oracle, points: Float[Tensor, "n k *shape"], rows: Tensor) -> Float[Tensor, "n k classes"]:
    """The logits of k points for each image, in one batch, each counted."""
    count = points.shape[1]
    logits = oracle.logits(points.flatten(0, 1), rows.repeat_interleave(count))
    return logits.view(len(points), count, -1)


def signs(images: Images, seed: int, index: Tensor) -> Float[Tensor, "n k *shape"]:
    """Fair signs, ±1, in the shape of each image, keyed by k numbers per image."""
    n, k = index.shape
    numel = images[0].numel()
    draws = randomness.uniform((-(-numel // BITS),), seed, index.flatten())
    words = (draws * (1 << BITS)).to(torch.int32)
    bits = (words[:, :, None] >> torch.arange(BITS, device=images.device, dtype=torch.int32)) & 1
    return (2 * bits.flatten(1)[:, :numel] - 1).to(images.dtype).view(n, k, *images.shape[1:])
