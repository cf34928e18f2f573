"""Adversarial training: on the worst point the attack finds near each image.

Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018; the share of clean images after Xie
and Yuille, "Intriguing properties of adversarial training at scale", 2020: N adversarial images and clean_share · N
clean ones in one batch, the loss being the mean over all (1 + clean_share) · N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bessemer.attacks import Attack
from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.training.methods.method import Method, classification_loss


@dataclass(frozen=True)
class Adversarial(Method):
    """Train on adversarial images, and on a share of the clean ones.

    The attack sees the network in evaluation mode (running statistics, no dropout), the training pass sees it in
    training mode. clean_share: 0 (Madry) … 1 (as many clean images as adversarial ones); the first of the batch count.
    """

    attack: Attack
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean_share <= 1:
            raise UsageError(f"clean_share should lie between 0 and 1, found {self.clean_share}")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy over the adversarial images and the clean share."""
        images = self.attack(model, batch.images, batch.labels, seed=batch.seed, index=batch.index)
        labels = batch.labels
        if clean := round(self.clean_share * len(batch)):
            images, labels = torch.cat([images, batch.images[:clean]]), torch.cat([labels, labels[:clean]])
        return classification_loss(model, images, labels)
