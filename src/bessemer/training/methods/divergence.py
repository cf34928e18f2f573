"""How far the prediction for an adversarial image is from that for the clean one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def divergence(clean: Float[Tensor, "n k"], adversarial: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """KL(p(clean) ‖ p(adversarial)) of the softmax of two rows of logits, image by image."""
    # half precision has too few digits for the difference of two logarithms
    kind = torch.promote_types(clean.dtype, torch.float32)
    log_p, log_q = clean.to(kind).log_softmax(1), adversarial.to(kind).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
