"""Normalisation as the model's own first layer, so that every attack and number speaks of [0, 1] pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bessemer.errors import ImagesError, UsageError

Statistic = float | Sequence[float] | Tensor


class Normalize(nn.Module):
    """(images - mean) / std, for images in [0, 1].

    mean, std: in the same units; one number, one per channel, or a tensor of shape (C, 1, 1) or (C, H, W),
    such as a mean image. Both are buffers: they are saved with the weights and follow the model to its
    device.

    Raises `UsageError` for a standard deviation that is not positive, `ImagesError` for images they do not
    fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistic, std: Statistic) -> None:
        super().__init__()
        self.register_buffer("mean", _broadcastable("mean", mean))
        self.register_buffer("std", _broadcastable("std", std))
        if not _everywhere(self.std > 0):
            raise UsageError(
                f"Normalize: std should be positive everywhere, but its smallest value is {self.std.min():g}"
            )

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The images, in standard units."""
        for statistic in (self.mean, self.std):
            if not (images.is_floating_point() and _fits(statistic, images)):
                raise ImagesError(
                    f"Normalize takes (N, C, H, W) floats that fit statistics of {tuple(statistic.shape)}, "
                    f"not {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
                )
        return (images - self.mean) / self.std


def _broadcastable(name: str, values: Statistic) -> Tensor:
    """The values as a finite float32 tensor without axes, or with the axes (C, H, W)."""
    statistic = torch.as_tensor(values, dtype=torch.float32).detach().clone()
    if statistic.dim() == 1:
        statistic = statistic[:, None, None]
    if statistic.dim() not in (0, 3) or not statistic.numel():
        raise UsageError(
            f"Normalize: {name} should be one number, one per channel or of shape (C, H, W), "
            f"not of shape {tuple(statistic.shape)}"
        )
    if not _everywhere(statistic.isfinite()):
        raise UsageError(f"Normalize: {name} holds values that are not finite")
    return statistic


def _everywhere(condition: Tensor) -> bool:
    """Whether it holds for every value; on the meta device, where there are none, it does."""
    return condition.is_meta or bool(condition.all())


def _fits(statistic: Tensor, images: Tensor) -> bool:
    """Whether the statistic broadcasts without enlarging the images: one grey channel would become three."""
    return images.dim() == 4 and all(
        size in (1, needed) for size, needed in zip(statistic.shape, images.shape[1:], strict=False)
    )
