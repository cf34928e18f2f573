"""Networks whose first layer brings each colour channel to mean 0 and deviation 1 over the training images."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bessemer.errors import ImagesError
from bessemer.models.network import Network
from bessemer.models.normalize import Normalize

CHUNK = 1000  # images summed at once: float64 copies of the whole training set need not fit in memory


class StandardizedNetwork(Network):
    """A network that begins with `Normalize`: mean 0 and deviation 1 until `learn_statistics` has seen images.

    Statistics are one number a channel, so that a first-layer filter means the same at every place in the image.
    """

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__(classes, dropout)
        channels = self.image_shape[0]
        self.normalize = Normalize(mean=torch.zeros(channels), std=torch.ones(channels))

    @torch.no_grad()
    def learn_statistics(self, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]) -> None:
        """Set each channel's mean and deviation from the training images, uint8 grey levels or floats in [0, 1].

        A channel that hardly varies keeps a deviation of one grey level: its noise is not blown up.
        """
        if images.shape[1:] != self.image_shape or not len(images):
            shape = f"(N, {', '.join(str(size) for size in self.image_shape)})"
            raise ImagesError(
                f"{type(self).__name__} learns its channels' means from {shape} images, not {tuple(images.shape)}"
            )
        mean = sum(chunk.double().sum((0, 2, 3)) for chunk in images.split(CHUNK)) / images[:, 0].numel()
        squares = sum((chunk.double() - mean[:, None, None]).square().sum((0, 2, 3)) for chunk in images.split(CHUNK))
        largest = 255 if images.dtype == torch.uint8 else 1
        deviation = (squares / images[:, 0].numel()).sqrt()
        self.normalize.mean.copy_(mean[:, None, None] / largest)
        self.normalize.std.copy_((deviation[:, None, None] / largest).clamp(min=1 / 255))
