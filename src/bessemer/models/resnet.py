"""Residual networks of basic blocks for 32×32 images.

K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", 2016. Two shapes, told apart by
their depth:

- 6n + 2 layers (8, 14, 20, …): section 4.2, three stages of n blocks, 16, 32 and 64 channels wide; where a stage
  begins, the short cut takes every second pixel and adds channels of zeros (their option A);
- 18 or 34 layers: their ImageNet networks with a 3×3 stem of stride 1 in place of 7×7 and pooling, four stages from 64
  to 512 channels; where the shape changes, the short cut is a 1×1 convolution with batch norm (their option B).

What differs from section 4.2: each channel is brought to mean 0 and deviation 1, where they subtract the mean image;
dropout before the last layer and denoising blocks, both off unless asked for. Convolutions start as in "Delving deep
into rectifiers" (2015), fan out; batch norm is PyTorch's.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

from bessemer.errors import UsageError
from bessemer.layers.denoising import Denoising
from bessemer.models.standardized import StandardizedNetwork

FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ResNet(StandardizedNetwork):
    """A residual network of basic blocks for 32×32 colour images in [0, 1].

    depth: 6n + 2 for three stages, 18 or 34 for four. width: channels of the first stage, doubled by each further one;
    the published widths are 16 for three stages and 64 for four. dropout: the share left out before the last layer.
    denoising: the filter of a denoising block after the last block of a stage (`bessemer.layers.Denoising`), or "" for
    none; denoise_from: the first stage that has one, counted from 1. The first stage's maps are as large as the images,
    and "gaussian" compares every two of their 1,024 positions. All other weights start as without such blocks.

    Raises `UsageError` for settings that describe no network.
    """

    image_shape = (3, 32, 32)

    def __init__(
        self,
        classes: int = 10,
        dropout: float = 0.0,
        depth: int = 20,
        width: int = 16,
        denoising: str = "",
        denoise_from: int = 1,
    ) -> None:
        super().__init__(classes, dropout)
        plan = blocks(depth)
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise UsageError(f"ResNet: width should be a whole number from 1 upwards, not {width!r}")
        if isinstance(denoise_from, bool) or denoise_from not in range(1, len(plan) + 1):
            raise UsageError(f"ResNet: denoise_from should be a stage from 1 to {len(plan)}, not {denoise_from!r}")
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        channels = width
        for number, count in enumerate(plan):
            out = width << number
            stage = nn.Sequential()
            for place in range(count):
                stride = 2 if number and not place else 1
                stage.append(BasicBlock(channels, out, stride, projected=len(plan) == 4))
                channels = out
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if denoising:  # last, so that everything else is drawn as without
            for number in range(denoise_from - 1, len(plan)):
                self.stages[number].add_module(str(plan[number]), Denoising(width << number, denoising))

    def forward(self, images: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = relu(self.norm(self.stem(self.normalize(images))))
        x = self.pool(self.stages(x)).flatten(1)
        return self.fc(self.dropout(x))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and a short cut around them.

    projected: where the shape changes, the short cut is a 1×1 convolution with batch norm; else it has no weights.
    """

    def __init__(self, channels: int, out: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.short: nn.Module = nn.Identity()
        if (channels, stride) != (out, 1):
            self.short = _projection(channels, out, stride) if projected else _Padding(out - channels, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The block's answer, after its last ReLU."""
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(y + self.short(x))


class _Padding(nn.Module):
    """Every `stride`-th pixel, with channels of zeros behind the others."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        # a slice with steps would hand its gradient back in the default layout, whatever the network's is
        return pad(avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, 0, self.more))


def _projection(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def blocks(depth: int) -> tuple[int, ...]:
    """How many blocks each stage has. Raises `UsageError` for a depth that no such network has."""
    whole = isinstance(depth, int) and not isinstance(depth, bool)
    if whole and depth in FOUR_STAGES:
        return FOUR_STAGES[depth]
    each, left = divmod(depth - 2, 6)
    if not whole or left or each < 1:
        raise UsageError(
            f"ResNet: no network of basic blocks is {depth!r} layers deep; depth should be 6n + 2 (8, 14, 20, …, 110) "
            f"for three stages, or one of {', '.join(str(known) for known in FOUR_STAGES)} for four"
        )
    return (each,) * 3
