"""MART: adversarial training that minds which clean images are misclassified.

    loss = mean [ −log p_y(x') − log(1 − max_{k≠y} p_k(x')) ] + beta · mean [ KL(p(x) ‖ p(x')) · (1 − p_y(x)) ]

Wang, Zou, Yi, Bailey, Ma and Gu, "Improving adversarial robustness requires revisiting misclassified examples", 2020:
a boosted cross-entropy on adversarial images x', and a divergence that counts more the less a clean image is known.
Gradients flow through both predictions and through the weight. The authors' code writes 1.0001 for the 1 of the first
mean, which bounds that term by about 9.2; here it is the logarithm itself, which cannot overflow either. The attack is
the user's choice (theirs is PGD on the cross-entropy). Other than there, x and x' go through the network as one batch:
where there are batch norms, they take their statistics over both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bessemer.data import Batch
from bessemer.errors import UsageError
from bessemer.layers import report_misclassified
from bessemer.training.methods.attacking import Attacking
from bessemer.training.methods.divergence import divergence


@dataclass(frozen=True)
class Mart(Attacking):
    """Train on adversarial images, and hold predictions where clean images are badly known.

    beta: the weight of the divergence. The rest as for every attacking method (`Attacking`).
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise UsageError(f"MART's beta should be a number from 0 upwards, found {self.beta}")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The boosted cross-entropy, and the weighted divergence."""
        adversarial = self.attacked(model, batch).adversarial
        assert adversarial is not None
        logits = report_misclassified(model, model(torch.cat([batch.images, adversarial])), batch.labels.repeat(2))
        # half precision has too few digits for what follows
        clean, other = logits.to(torch.promote_types(logits.dtype, torch.float32)).chunk(2)
        own = batch.labels[:, None]
        doubt = 1 - clean.softmax(1).gather(1, own)[:, 0]
        return _boosted(other, own).mean() + self.beta * (divergence(clean, other) * doubt).mean()


def _boosted(logits: Tensor, own: Tensor) -> Tensor:
    """−log p_y − log(1 − max_{k≠y} p_k), image by image; own: y as a column."""
    likeliest = logits.detach().scatter(1, own, -torch.inf).argmax(1, keepdim=True)
    # 1 − p_k is the sum of all others: taken as such, it keeps its digits where p_k is all but 1
    others = logits.scatter(1, likeliest, -torch.inf).logsumexp(1)
    return 2 * logits.logsumexp(1) - logits.gather(1, own)[:, 0] - others
