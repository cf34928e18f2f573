"""Feature denoising: what an attack adds to the features is filtered out of them.

C. Xie, Y. Wu, L. van der Maaten, A. Yuille and K. He, "Feature denoising for improving adversarial robustness", CVPR
2019 (arXiv:1812.03411). A block between two residual blocks:

    z = x + BN(Conv1x1(denoise(x))),

whose gamma starts at 0, so that a network begins as the one without it. The filters, i and j positions of the feature
map, C its channels, N its positions:

    gaussian     y_i = sum_j softmax_j(theta(x_i) . phi(x_j) / sqrt(C / 2)) x_j
    dot-product  y_i = 1/N sum_j (x_i . x_j) x_j
    bilateral    as gaussian, over the 3×3 window around i alone
    mean         the mean of the 3×3 window
    median       the median of the 3×3 window, channel by channel

theta and phi are 1×1 convolutions to C / 2 channels. Left out on purpose: embeddings for the dot product, which the
authors' released models do not have either.

A window at the border holds the positions there are; the median's repeats the outermost ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from bessemer.errors import UsageError, unknown


class Denoising(nn.Module):
    """A denoising block for feature maps of so many channels; before training it changes nothing.

    filter: "gaussian", "dot-product", "bilateral", "mean" or "median". Memory: "gaussian" compares every two positions,
    which a fused kernel may do piece by piece; "dot-product" keeps C × C or N × N numbers per image, whichever is less;
    "median" nine feature maps.

    Raises `UsageError` for a filter that is not known, or an embedding of fewer than two channels.
    """

    def __init__(self, channels: int, filter: str = "gaussian") -> None:
        super().__init__()
        if filter not in FILTERS:
            raise unknown("filter", filter, FILTERS)
        if channels < 2 and filter in EMBEDDED:
            raise UsageError(f"the {filter} filter compares half of the channels, and {channels} cannot be halved")
        self.channels, self.filter = channels, filter
        self.filtered = FILTERS[filter](channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The features, with what the filter makes of them added."""
        return x + self.norm(self.conv(self.filtered(x)))

    def extra_repr(self) -> str:
        """The filter."""
        return f"{self.channels}, filter={self.filter!r}"


class _Embedded(nn.Module):
    """A filter that compares positions by two embeddings of their features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 2, 1, bias=False)
        for embedding in (self.theta, self.phi):
            nn.init.normal_(embedding.weight, std=0.01)


class _Gaussian(_Embedded):
    """A mean over all positions, weighted by how alike they are."""

    def forward(self, x: Tensor) -> Tensor:
        # one attention head whose tokens are the positions
        theta, phi, value = (each.flatten(2).transpose(1, 2)[:, None] for each in (self.theta(x), self.phi(x), x))
        y = scaled_dot_product_attention(theta, phi, value.to(theta.dtype))  # it divides by sqrt(C / 2) itself
        return y[:, 0].transpose(1, 2).reshape(x.shape)


class _Bilateral(_Embedded):
    """A mean over the neighbours, weighted by how alike they are."""

    def forward(self, x: Tensor) -> Tensor:
        theta, phi = self.theta(x), self.phi(x)
        inside = _neighbours(torch.ones_like(x[:1, :1]))
        alike = torch.stack([(theta * other).sum(1) for other in _neighbours(phi)], dim=1)
        alike = alike / math.sqrt(phi.shape[1])
        weights = alike.masked_fill(torch.cat(inside, dim=1) == 0, -math.inf).softmax(1).to(x.dtype)
        return sum(
            (weight[:, None] * other for weight, other in zip(weights.unbind(1), _neighbours(x), strict=True)),
            torch.zeros_like(x),
        )


class _DotProduct(nn.Module):
    """A sum over all positions, weighted by their inner products."""

    def forward(self, x: Tensor) -> Tensor:
        features = x.flatten(2)
        channels, positions = features.shape[1:]
        shared = features / math.sqrt(positions)  # divided before they are summed, which half precision could not hold
        if channels < positions:
            y = shared @ shared.transpose(1, 2) @ features
        else:
            y = features @ (shared.transpose(1, 2) @ shared)
        return y.view(x.shape)


class _Median(nn.Module):
    """The median of the neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(_neighbours(x, "replicate")).median(0).values


EMBEDDED = ("gaussian", "bilateral")
FILTERS: dict[str, Callable[[int], nn.Module]] = {
    "gaussian": _Gaussian,
    "dot-product": lambda channels: _DotProduct(),
    "bilateral": _Bilateral,
    "mean": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "median": lambda channels: _Median(),
}


def _neighbours(x: Tensor, border: str = "constant") -> list[Tensor]:
    """The feature map moved to each of the nine places of a 3×3 window: views, with zeros or repetition around them."""
    h, w = x.shape[2:]
    around = pad(x, (1, 1, 1, 1), border)
    return [around[:, :, row : row + h, column : column + w] for row in range(3) for column in range(3)]
