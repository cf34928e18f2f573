"""What the networks of this package share: the shape of the images they take, and a check at the door.

A convolution takes grey levels, a forgotten axis or a larger image without a word and answers nonsense; the
check costs a comparison of two shapes and compiles away.
"""

from __future__ import annotations

from torch import Tensor, nn

from bessemer.errors import ImagesError, UsageError


class Network(nn.Module):
    """A network for images of one shape, with a dropout layer somewhere inside.

    image_shape: (C, H, W), of the class or, where a setting decides it, of the object. classes: how many logits come
    out. dropout: the share of values a training pass leaves out, 0 for none; the others are divided by 1 - dropout, as
    in Caffe.
    """

    image_shape: tuple[int, int, int]

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        name = type(self).__name__
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise UsageError(f"{name}: classes should be a whole number from 1 upwards, not {classes!r}")
        if not 0 <= dropout < 1:
            raise UsageError(f"{name}: dropout should be a share from 0 up to but not including 1, not {dropout!r}")
        self.classes = classes
        self.dropout = nn.Dropout(dropout)

    def require(self, images: Tensor) -> None:
        """Refuse (`ImagesError`) what is not a batch of float images of this network's shape."""
        if images.shape[1:] != self.image_shape or not images.is_floating_point():
            channels, height, width = self.image_shape
            raise ImagesError(
                f"{type(self).__name__} takes (N, {channels}, {height}, {width}) floats in [0, 1], "
                f"not {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
