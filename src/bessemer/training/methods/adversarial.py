"""Adversarial training: on the worst point the attack finds near each image.

Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018; the share of clean images after Xie
and Yuille, "Intriguing properties of adversarial training at scale", 2020: N adversarial images and clean_share · N
clean ones in one batch, the loss being the mean over all (1 + clean_share) · N.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.training.methods.attacking import Attacking
from bessemer.training.methods.method import Method
from bessemer.training.methods.plain import Plain


@dataclass(frozen=True)
class Adversarial(Attacking):
    """Train on adversarial images, and on a share of the clean ones.

    clean_share: 0 (Madry) … 1 (as many clean images as adversarial ones); the first of the batch count. It is rounded
    to whole images, where a batch is worked through in parts those of each part. inside: the method whose loss is taken
    on these images. The rest as for every attacking method (`Attacking`).
    """

    clean_share: float = 0.0
    inside: Method = Plain()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clean_share <= 1:
            raise UsageError(f"clean_share should lie between 0 and 1, found {self.clean_share}")

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """As the method inside."""
        return self.inside.prepare(model, until_done)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss on the adversarial images and the clean share.

        Raises `UsageError` where that share of the batch is not a single image.
        """
        images = self.attacked(model, batch).adversarial
        assert images is not None
        labels, index = batch.labels, batch.index
        clean = round(self.clean_share * len(batch))
        if self.clean_share and not clean:
            raise UsageError(
                f"clean_share: {self.clean_share:g} of {len(batch)} images is none; take larger batches, or work "
                "through them in fewer parts (training.accumulation, processes)"
            )
        if clean:
            images = torch.cat([images, batch.images[:clean]])
            labels, index = torch.cat([labels, labels[:clean]]), torch.cat([index, index[:clean]])
        return self.inside.loss(model, replace(batch, images=images, labels=labels, index=index, adversarial=None))
