"""The weights of a network as neurons: for every layer with filters a matrix, one row a neuron.

Convolutions of any kind and linear layers have filters: a weight of shape (out, in, kh, kw) becomes (out, in·kh·kw). A
transposed convolution keeps its weight the other way round and is turned. Biases, normalisation and embeddings have no
filters. A network may be a module or a state dict; a state dict does not say of what kind its layers are, so there
every weight of two or more dimensions counts as one row a neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from bessemer.errors import UsageError
from bessemer.models.foreign import WRAPPERS

Network = nn.Module | Mapping[str, Tensor]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FILTERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
ATTENTION = "in_proj_weight"  # the queries, keys and values of `nn.MultiheadAttention`


@dataclass(frozen=True)
class Weight:
    """A layer's weight as the network keeps it; `groups` is that of a transposed convolution, 0 for all others."""

    tensor: Tensor
    groups: int = 0

    @property
    def rows(self) -> Float[Tensor, "neurons size"]:
        """The weight with one row a neuron, in float64."""
        weight = self.tensor.detach().double()
        if self.groups:  # (in, out/groups, …): the inputs of a group feed the outputs of that group alone
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight.flatten(1)


def weights(network: Network, like: dict[str, Weight] | None = None) -> dict[str, Weight]:
    """The weight of every layer with filters, by the layer's name, in the order of the network.

    A layer that is used twice stands there once; two layers that share a weight stand there both. like: the weights of
    a module of the same architecture, which tells how to read those of a state dict.
    """
    if isinstance(network, Mapping):
        return _of_state(network, like)
    found: dict[str, Weight] = {}
    for name, module in network.named_modules():
        if isinstance(module, FILTERS):
            found[name or "weight"] = Weight(module.weight, module.groups if isinstance(module, TRANSPOSED) else 0)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[f"{name}.{ATTENTION}".lstrip(".")] = Weight(module.in_proj_weight)
    return _unwrapped(found)


def left_out(module: nn.Module) -> list[str]:
    """The parameters of two or more dimensions that belong to no layer with filters, such as embeddings."""
    measured = [weight.tensor for weight in weights(module).values()]
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and not any(parameter is tensor for tensor in measured)
    ]


def tied(one: Weight, other: Weight) -> bool:
    """Whether two layers share one weight."""
    return one.tensor.data_ptr() == other.tensor.data_ptr() and one.tensor.shape == other.tensor.shape


def _of_state(state: Mapping[str, Tensor], like: dict[str, Weight] | None) -> dict[str, Weight]:
    wrong = next((name for name, tensor in state.items() if not isinstance(tensor, Tensor)), None)
    if wrong is not None:
        kind = type(state[wrong]).__name__
        raise UsageError(f"a state dict holds tensors by name, but {wrong} is a {kind}; give model.state_dict()")
    found = {
        name.removesuffix(".weight"): Weight(tensor)
        for name, tensor in state.items()
        if name.endswith("weight") and tensor.dim() > 1
    }
    found = _unwrapped(found)
    if like is None:
        return found
    # what a module of this architecture does not name, such as an embedding, has no filters
    return {name: Weight(found[name].tensor, like[name].groups) for name in like if name in found}


def _unwrapped(found: dict[str, Weight]) -> dict[str, Weight]:
    """Without the prefixes of DataParallel and torch.compile."""
    while prefix := next((each for each in WRAPPERS if found and all(name.startswith(each) for name in found)), ""):
        found = {name.removeprefix(prefix): weight for name, weight in found.items()}
    return found
