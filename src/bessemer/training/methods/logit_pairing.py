"""Logit pairing: images that should look alike to a network get like logits.

Kannan, Kurakin and Goodfellow, "Adversarial logit pairing", 2018. With L the mean cross-entropy and z(x) the logits,

    adversarial    L(x and x') + weight · mean (z(x) − z(x'))²      x' the adversarial counterpart of x
    clean          L(x)        + weight · mean (z(x₁) − z(x₂))²     x₁, x₂ the first and the second half of the batch
    squeezing      L(x)        + weight · mean z(x)²                the latter two on images with Gaussian noise

and every mean is over images and classes, as in the authors' code. Logits on both sides of a pair have a gradient.
It mainly makes the loss harder to climb: judge such a network by attacks of many hundred steps (Engstrom, Ilyas and
Athalye, "Evaluating and understanding the robustness of adversarial logit pairing", 2018).
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bessemer.attacks import Attack
from bessemer.data import Batch
from bessemer.errors import UsageError, unknown
from bessemer.layers import branches, report_misclassified, route
from bessemer.randomness import normal
from bessemer.training.methods.attacking import Perturbing, require_radius
from bessemer.training.methods.branched import require_branches

FORMS = ("adversarial", "clean", "squeezing")
CLEAN, ADVERSARIAL = "clean", "adversarial"  # the branches that a mixture norm has unless told otherwise


@dataclass(frozen=True)
class LogitPairing(Perturbing):
    """Cross-entropy, and a penalty on how far paired logits are apart.

    attack: what makes the other half of the adversarial pairs; the other forms have none. weight: of the penalty.
    form: `adversarial`, `clean` or `squeezing`. noise: standard deviation of the noise of the latter two, in [0, 1]
    units; pixels are clipped to [0, 1]. label_smoothing: as in regular training.

    Where the model has a mixture norm, the adversarial form sends clean and adversarial images through the branches of
    these names, and attacks through the latter.
    """

    attack: Attack | None = None
    weight: float = 0.5
    form: str = "adversarial"
    noise: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS)
        if (self.attack is None) == (self.form == "adversarial"):
            wants = "needs an attack" if self.attack is None else "makes no attack, so none should be given"
            raise UsageError(f"logit pairing of the form {self.form!r} {wants}")
        if self.attack is not None:
            require_radius(self.attack, self.warmup)
        for name in ("weight", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} should be a number from 0 upwards, found {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing should lie between 0 and 1, found {self.label_smoothing}")

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """The model as it is. Raises `UsageError` where it has branches, but not a clean and an adversarial one."""
        if self.form == "adversarial" and branches(model):
            require_branches(model, CLEAN, ADVERSARIAL)
        return model

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with an adversarial image for each of its own, where the form pairs these."""
        if self.attack is None or batch.adversarial is not None:
            return batch
        through = route(model, ADVERSARIAL) if branches(model) else model
        return replace(batch, adversarial=self.made(self.attack, through, batch))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy, and the penalty."""
        images, labels = self.attacked(model, batch).adversarial, batch.labels
        if self.form == "adversarial":
            assert images is not None
            images, labels = torch.cat([batch.images, images]), torch.cat([labels, labels])
            if branches(model):
                model = route(model, {CLEAN: len(batch), ADVERSARIAL: len(batch)})
        else:
            images = batch.images
            if self.noise:
                noise = normal(tuple(images.shape[1:]), batch.seed, batch.index, images.dtype, stream=8)
                images = (images + self.noise * noise).clamp(0, 1)
        logits = report_misclassified(model, model(images), labels)
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss + self.weight * self._apart(logits).square().mean()

    @property
    def branch(self) -> str:
        """The adversarial one, where pairs are adversarial."""
        return ADVERSARIAL if self.form == "adversarial" else ""

    def _apart(self, logits: Tensor) -> Tensor:
        """What is to be small."""
        if self.form == "squeezing":
            return logits
        pairs = len(logits) // 2
        if not pairs:
            raise UsageError("clean logit pairing needs at least two images in a batch")
        return logits[:pairs] - logits[-pairs:]
