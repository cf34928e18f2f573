"""Free adversarial training: each batch is replayed, and every backward pass serves the weights and the attack at once.

    for each batch, `replays` times:
        g_θ, g_x  =  ∇_θ, ∇_x loss(x + δ; θ)              one backward pass
        θ  <-  step of the optimiser along g_θ
        δ  <-  projection(δ + eps · sign(g_x))

Shafahi et al., "Adversarial training for free!", 2019, algorithm 1. There δ also outlives its batch, and the next one
begins where other images left off. Here each batch begins at a uniform point of the ball, keyed by seed and image: the
state of training is then the weights alone, so that a resumed run is the uninterrupted one. For the single step, Wong,
Rice and Kolter ("Fast is better than free", 2020) try the previous batch's perturbation and a random one, and go on
with the random one.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.threat import Threat
from bessemer.training.methods.attacking import Perturbing
from bessemer.training.methods.method import Losses, Method
from bessemer.training.methods.plain import Plain


@dataclass(frozen=True)
class Free(Method):
    """Train `replays` times in a row on each batch, while the perturbation moves along.

    An iteration of the loop is one batch, with so many updates of the weights: a budget of n epochs of ordinary
    training is n / replays epochs of this. inside: the method whose loss is taken on the perturbed images; it must not
    attack, nor hold one that does, and make one update.
    """

    threat: Threat
    replays: int = 4
    inside: Method = Plain()

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise UsageError(f"replays is a number of updates from 1 upwards, found {self.replays}")
        if self.inside.updates != 1:
            raise UsageError(f"free training replays a batch itself, so {type(self.inside).__name__} cannot be inside")
        inside: Any = self.inside
        while isinstance(inside, Method):
            # logit pairing has forms without an attack
            if isinstance(inside, Perturbing) and getattr(inside, "attack", inside) is not None:
                raise UsageError(
                    f"free training moves the images itself, so {type(inside).__name__}, which attacks them, cannot be "
                    "inside; put a method there that does not attack"
                )
            inside = getattr(inside, "inside", None)

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """As the method inside."""
        return self.inside.prepare(model, until_done)

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with the points at which the replays begin."""
        if batch.adversarial is not None:
            return batch
        return replace(batch, adversarial=self.threat.sample(batch.images, batch.seed, batch.index))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The first of the losses."""
        return next(self.losses(model, batch))

    @property
    def updates(self) -> int:
        """As many as there are replays."""
        return self.replays

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """The losses at points that the backward passes in between move."""
        images = self.attacked(model, batch).adversarial
        assert images is not None
        for replay in range(1, self.replays + 1):
            # nobody asks where the last one would have moved to
            images = images.detach().requires_grad_(replay < self.replays)
            yield self.inside.loss(model, replace(batch, images=images, adversarial=None))
            if replay < self.replays:
                if images.grad is None:
                    raise UsageError("free training needs the backward pass of each loss before the next is asked for")
                # only its direction counts: a loss that was scaled, or is a part of the batch's, leads to the same
                direction = self.threat.step(images.grad.nan_to_num(0.0, 0.0, 0.0), images.detach())
                images = self.threat.project(images.detach() + self.threat.eps * direction, batch.images)
