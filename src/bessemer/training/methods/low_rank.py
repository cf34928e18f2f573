"""Training a low-rank update of each layer's weight, and nothing else of it.

    W' = W + U V      W fixed; U of shape (out, rank) and V of shape (rank, in · kh · kw) are trained

A weight of more than two dimensions is flattened to (out, in · kh · kw), its first dimension against all others (for
transposed convolutions that is the input channels). Allen-Zhu and Li study adversarial training whose change of the
clean weights has low rank ("Feature purification", arXiv:2005.10190, version 4); how they flatten is not known to us.
The parametrisation is that of Hu et al., "LoRA: low-rank adaptation of large language models", 2022.

U starts at zero, so that training begins at W. V starts with orthogonal rows of one length, c, chosen so that the first
step is about as long as a step on W itself would be: through V the gradient G becomes G VᵀV, of which a random subspace
holds a share of sqrt(rank / columns), hence c² = sqrt(columns / rank).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bessemer.errors import UsageError
from bessemer.layers.balance import LINEAR_LAYERS
from bessemer.randomness import normal
from bessemer.training.methods.freezing import freeze, freeze_parameter
from bessemer.training.methods.method import Around, Method
from bessemer.training.methods.plain import Plain


@dataclass(frozen=True)
class LowRank(Around):
    """Any training method, on a low-rank update of each linear and convolution layer's weight.

    rank: of the update; a layer with fewer rows or columns gets as much as it can hold, which is any update at all.
    match: a shell pattern over the names of the layers that are updated, unless the method inside has frozen them; the
    weights of others stay as they are.
    others: whether all that is not the weight of such a layer (biases, batch norms) is trained as usual, or frozen,
    running statistics included. Weight decay pulls U and V, and so the update, towards zero, not the weights. inside:
    the method that trains.
    """

    rank: int
    match: str = "*"
    others: bool = True
    inside: Method = Plain()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"low-rank: rank should be a whole number from 1 upwards, found {self.rank}")

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """Put U and V in place, until training is done; the layer then keeps W + U V as its weight.

        Raises `UsageError` where no linear or convolution layer that is trained matches.
        """
        model = self.inside.prepare(model, until_done)
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, LINEAR_LAYERS) and layer.weight.requires_grad
        }
        updated = [name for name in layers if fnmatchcase(name, self.match)]
        if not updated:
            raise UsageError(f"low-rank: {self.match!r} matches none of the layers {', '.join(layers)}")
        for layer in layers.values():
            freeze_parameter(layer.weight, until_done)
        if not self.others:
            for module in model.modules():
                freeze(module, until_done)
        for place, name in enumerate(updated):
            weight = layers[name].weight
            rank = min(self.rank, len(weight), weight[0].numel())
            parametrize.register_parametrization(layers[name], "weight", _Update(weight, rank, place))
            until_done.callback(parametrize.remove_parametrizations, layers[name], "weight")
        return model


class _Update(nn.Module):
    """W to W + U V."""

    def __init__(self, weight: Tensor, rank: int, seed: int) -> None:
        super().__init__()
        columns = weight[0].numel()
        # on the CPU, so that every device begins alike
        random = normal((columns,), seed, torch.arange(rank), torch.float64)
        orthogonal = torch.linalg.qr(random.T).Q.T
        self.u = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.v = nn.Parameter((orthogonal * (columns / rank) ** 0.25).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.u @ self.v).view(weight.shape)
