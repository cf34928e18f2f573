"""TRADES: the cross-entropy of clean images, and how far an attack can move their prediction.

    loss = mean CE(z(x), y) + beta · mean max_{x' in the ball} KL(p(x) ‖ p(x'))

H. Zhang, Y. Yu, J. Jiao, E. P. Xing, L. El Ghaoui and M. I. Jordan, "Theoretically principled trade-off between
robustness and accuracy", 2019, equation 5 and algorithm 1, with beta for their 1/λ. As in the authors' code the inner
maximum is climbed from x plus 0.001 times normal noise with the network in evaluation mode, p(x) held fixed, the last
point counts, and gradients flow through both predictions of the loss. Other than there, the noise is clipped to legal
pixels, and x and x' go through the network as one batch: where there are batch norms, they take their statistics over
both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import borrowed
from bessemer.attacks.attack import Images
from bessemer.attacks.gradient_attack import GradientAttack
from bessemer.attacks.parts import Constant, Start
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.layers import report_misclassified
from bessemer.randomness import normal
from bessemer.threat import Threat
from bessemer.training.methods.attacking import Perturbing
from bessemer.training.methods.divergence import divergence


@dataclass(frozen=True)
class _NearBy(Start):
    """The image and a little normal noise: at the image itself the divergence has no slope."""

    def point(self, threat: Threat, images: Images, seed: int, index: Int[Tensor, " n"]) -> Images:
        return threat.project(images + 0.001 * normal(tuple(images.shape[1:]), seed, index, images.dtype), images)


@dataclass(frozen=True)
class Trades(Perturbing):
    """Train on clean images, and hold their predictions where they are in the whole ball.

    beta: the weight of the divergence. steps, step_size: of the attack that climbs it, the latter in the threat's own
    units; 2.5 eps / steps unless given. label_smoothing: of the cross-entropy.
    """

    threat: Threat
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise UsageError(f"TRADES' beta should be a number from 0 upwards, found {self.beta}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing should lie between 0 and 1, found {self.label_smoothing}")
        _ = self._attack(torch.empty(0))  # settings that cannot be are refused at once

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with an image near each of its own whose prediction is far away."""
        if batch.adversarial is not None:
            return batch
        seen = self.seen(model)
        with borrowed(seen, batch.images.device, batch.seed), torch.no_grad():
            clean = seen(batch.images)
        return replace(batch, adversarial=self.made(self._attack(clean), model, batch))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of the clean images, and the divergence."""
        adversarial = self.attacked(model, batch).adversarial
        assert adversarial is not None
        logits = model(torch.cat([batch.images, adversarial]))
        clean, other = report_misclassified(model, logits, batch.labels.repeat(2)).chunk(2)
        loss = cross_entropy(clean, batch.labels, label_smoothing=self.label_smoothing)
        return loss + self.beta * divergence(clean, other).mean()

    def _attack(self, clean: Tensor) -> GradientAttack:
        """Climbs the divergence from these logits of the clean images."""
        return GradientAttack(
            self.threat,
            self.steps,
            loss=lambda goal, logits: divergence(clean, logits),
            start=_NearBy(),
            step_size=Constant(self.step_size),
            last=True,
        )
