"""Random brightness, contrast, saturation and light: the colour changes of ImageNet training, for a batch at once.

Each image draws four changes and the order they come in, as in facebookresearch/ImageNet-Adversarial-Training (after
facebook/fb.resnet.torch, whose contrast is about the mean of the grey image). With f uniform in [1 − jitter,
1 + jitter], drawn for each:

    brightness   x ← f x
    contrast     x ← f x + (1 − f) mean(x), each channel's mean over the image
    saturation   x ← f x + (1 − f) grey(x), grey = 0.299 R + 0.587 G + 0.114 B
    lighting     x ← x + V (a ∘ λ), a normal with deviation `lighting`, V and λ the principal colours of ImageNet
                 (Krizhevsky, Sutskever and Hinton 2012, section 4.1)

Each is an affine map of colours, the same for every pixel, and so are all four in a row: they become one 3×3 matrix
and one offset an image, and the pixels are touched once. They are clipped to [0, 1] at the end, not in between.
"""

from __future__ import annotations

from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bessemer import randomness
from bessemer.errors import UsageError

GREY = (0.299, 0.587, 0.114)
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # in columns
ORDERS = tuple(permutations(range(4)))


def draws(
    jitter: float, lighting: float, seed: int, index: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"], Int[Tensor, " n"]]:
    """Each image's factors (brightness, contrast, saturation), its light and the number of its order in `ORDERS`."""
    factors = 1 + jitter * (2 * randomness.uniform((3,), seed, index, torch.float64, stream=5) - 1)
    light = lighting * randomness.normal((3,), seed, index, torch.float64, stream=7)
    return factors, light, randomness.integers(len(ORDERS), seed, index, stream=6)


def changed(
    images: Float[Tensor, "n 3 h w"], jitter: float, lighting: float, seed: int, index: Int[Tensor, " n"]
) -> Float[Tensor, "n 3 h w"]:
    """The images in other colours, clipped to [0, 1]. Raises `UsageError` where they are not RGB."""
    if images.shape[1] != 3:
        raise UsageError(f"jitter and lighting change RGB colours, but these images have {images.shape[1]} channels")
    # in float64: a mean summed in another order must not change a pixel
    matrix, offset = _affine(images.mean((2, 3), dtype=torch.float64), *draws(jitter, lighting, seed, index))
    matrix, offset = matrix.to(images.dtype)[..., None, None], offset.to(images.dtype)[..., None, None]
    # written out, since a matrix product rounds differently in batches of another size
    mixed = matrix[:, :, 0] * images[:, :1]
    mixed += matrix[:, :, 1] * images[:, 1:2]
    mixed += matrix[:, :, 2] * images[:, 2:]
    return mixed.add_(offset).clamp_(0, 1)


def _affine(
    mean: Float[Tensor, "n 3"], factors: Float[Tensor, "n 3"], light: Float[Tensor, "n 3"], order: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
    """The matrix and the offset that the four changes of an image with these channel means amount to."""
    one = torch.eye(3, dtype=mean.dtype, device=mean.device)
    grey = mean.new_tensor(GREY).expand(3, 3)
    added = (light * mean.new_tensor(EIGENVALUES)) @ mean.new_tensor(EIGENVECTORS).T
    brightness, contrast, saturation = factors[:, :, None, None].unbind(1)
    matrices = torch.stack(
        [brightness * one, contrast * one, saturation * one + (1 - saturation) * grey, one.expand(len(mean), 3, 3)]
    )
    row = torch.arange(len(mean), device=mean.device)
    steps = torch.tensor(ORDERS, device=mean.device)[order]
    matrix, offset = one.expand(len(mean), 3, 3), torch.zeros_like(mean)
    for step in steps.unbind(1):
        now = _times(matrix, mean) + offset
        offsets = torch.stack([0 * now, (1 - factors[:, 1:2]) * now, 0 * now, added])
        chosen = matrices[step, row]
        matrix, offset = chosen @ matrix, _times(chosen, offset) + offsets[step, row]
    return matrix, offset


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices * vectors[:, None, :]).sum(2)
