"""Gradient balancing that sets itself: epsilon from a target, beta so that the update keeps its length.

Beyond the paper, which fixes epsilon and beta by hand, for all layers and the whole of training (Rozsa, Günther and
Boult, arXiv:1612.00138, name rules that adapt as future work). What counts of sample i in a layer's update is its
scaled norm (equations 3 and 4 of the paper)

    c_i(epsilon) = r_i eta_i = r_i ** (1 - epsilon (1 - r_i)),

and the *effective number* of contributing samples is (sum c)^2 / sum c^2: N where all count alike, 1 where one sample
makes the whole update. Regular training (epsilon = 0) starts near N and falls as it stalls.

Epsilon keeps an upper limit, for a target alone runs away: however sure a network is of the samples it gets right, they
would go on making the same share of each update, and the logits grow without bound. LeNet on MNIST, at the paper's
learning rate, ends in infinite weights within a few hundred steps where epsilon may reach 1 (`bessemer train
bang-adaptive-lenet-mnist --set method.epsilon=1`). Under the fixed rule a share fades as r ** (1 - epsilon), and the
limit keeps that.

To keep the update's length exactly would cost a second weight gradient. What stands in for it is the root of the sum of
squares of the samples' norms at the layer's output, as if samples were orthogonal. On LeNet and CIFAR-quick, after 100
to 2,000 steps, the median of that beta over the exact one is 0.85 to 1.16 in every layer but LeNet's conv1 (0.99 to
1.48); with the plain sum of norms it is 0.41 to 1.00 (`python benchmarks/kept_norm.py`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

GRID, ROUNDS = 17, 2  # values of epsilon tried at once; the second time between two neighbours of the first


def epsilon_for(contributing: float, norms: Float[Tensor, " n"], largest: float | Float[Tensor, " n"]) -> Tensor:
    """The smallest epsilon in [0, largest] at which the effective number of contributing samples is `contributing` * n.

    0 where so many contribute anyway; `largest` where it is not enough, as where too few samples have any gradient.
    norms: of one layer's samples, float64. largest: may differ between samples; so does epsilon then, which is the same
    part of it for all.
    """
    felt = norms > 0
    r = (norms / norms.max()).where(felt, 1.0)
    log_r = r.log()
    raised = log_r * (largest * (1 - r))
    steps = torch.linspace(0, 1, GRID, dtype=norms.dtype, device=norms.device)
    wanted = torch.full_like(steps[:1], contributing).log()
    grid = steps
    for _ in range(ROUNDS):
        c = torch.exp(log_r - grid[:, None] * raised) * felt
        # between neighbours the logarithm is nearly a straight line
        share = (c.sum(1).square() / (c.square().sum(1) * len(norms))).log()
        # the first that reaches the target: beyond epsilon = 0.88 the share may fall again a little
        after = (share.cummax(0).values < wanted).sum().clamp(1, GRID - 1)[None]
        low, high = grid.gather(0, after - 1), grid.gather(0, after)
        grid = torch.lerp(low, high, steps)
    before, reached = share.gather(0, after - 1), share.gather(0, after)
    # equal neighbours, or no gradient at all, give 0/0
    between = ((wanted - before) / (reached - before)).nan_to_num(0.0).clamp(0, 1).where(~(reached < wanted), 1.0)
    return largest * torch.lerp(low, high, between)[0]


def norm_keeping(norms: Float[Tensor, " n"], scaled: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The beta with which samples of norms `scaled` make an update about as long as samples of `norms` did.

    1 where there is no gradient at all.
    """
    return (norms.square().sum() / scaled.square().sum()).sqrt().where(norms.max() > 0, 1.0)
