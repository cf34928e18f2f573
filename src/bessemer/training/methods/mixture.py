"""Clean and adversarial images in one batch, each through batch norms of their own.

    loss = (mean over clean images + mean over adversarial images) / 2

Xie and Yuille, "Intriguing properties of adversarial training at scale", 2020: the two kinds follow two distributions,
and a network that normalises them together loses most of its robustness to long attacks. Logit pairing on top of it is
`LogitPairing`, which uses the same branches where a model has them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.layers import route
from bessemer.training.methods.attacking import Attacking
from bessemer.training.methods.branched import require_branches
from bessemer.training.methods.method import Method
from bessemer.training.methods.plain import Plain


@dataclass(frozen=True)
class Mixture(Attacking):
    """Train on every image and its adversarial counterpart, in one forward pass through two branches.

    clean, adversarial: the branches; the attack goes through the latter. inside: the method whose loss is taken on all
    these images. The rest as for every attacking method (`Attacking`).
    """

    clean: str = "clean"
    adversarial: str = "adversarial"
    inside: Method = Plain()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clean == self.adversarial:
            raise UsageError(f"clean and adversarial images need a branch each, found {self.clean!r} for both")

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """As the method inside. Raises `UsageError` where the model does not have the branches."""
        require_branches(model, self.clean, self.adversarial)
        return self.inside.prepare(model, until_done)

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with an adversarial image for each of its own, found through the adversarial branch."""
        return super().attacked(route(model, self.adversarial), batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss on both halves."""
        adversarial = self.attacked(model, batch).adversarial
        assert adversarial is not None
        joint = replace(
            batch,
            images=torch.cat([batch.images, adversarial]),
            labels=torch.cat([batch.labels, batch.labels]),
            index=torch.cat([batch.index, batch.index]),
            adversarial=None,
        )
        return self.inside.loss(route(model, {self.clean: len(batch), self.adversarial: len(batch)}), joint)

    @property
    def branch(self) -> str:
        """The adversarial one: robustness is what this is for."""
        return self.adversarial
