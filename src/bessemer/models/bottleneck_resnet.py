"""Residual networks of bottleneck blocks, 50 to 638 layers deep, for images of any size; and ResNeXt.

K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", 2016, table 1. A block is a 1×1, a
3×3 and a 1×1 convolution with batch norm; where the shape changes, the short cut is a 1×1 convolution with batch norm
(their option B). Depths 50, 101, 152: their counts of blocks; 200: "Identity mappings in deep residual networks", 2016.
C. Xie and A. Yuille, "Intriguing properties of adversarial training at scale" (arXiv:1906.03787) go on to 338, 518 and
638 layers; the counts of blocks that stand here for these follow from the depth and the multiply-adds they show, all
further blocks in the third stage.

As in P. Goyal et al., "Accurate, large minibatch SGD" (arXiv:1706.02677), section 5.1, not the original: the stride is
in the 3×3 convolution, not in the first 1×1; the last batch norm of each block starts at gamma 0, so that each block
starts as its short cut; the weights of the last layer start as N(0, 0.01²). Convolutions start as in "Delving deep into
rectifiers" (2015), fan out. C. Xie et al., "Feature denoising for improving adversarial robustness" (arXiv:1812.03411)
train such networks, with a denoising block after the last block of each stage or after every block.

S. Xie, R. Girshick, P. Dollár, Z. Tu and K. He, "Aggregated residual transformations for deep neural networks"
(ResNeXt, arXiv:1611.05431) split the 3×3 convolution into groups: ResNeXt-101 32×8d is `depth=101, groups=32,
width_per_group=8`.

Depths such as 50 and 152 are also 6n + 2: `ResNet` builds a network of *basic* blocks of that depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from bessemer.errors import UsageError
from bessemer.layers.denoising import Denoising
from bessemer.layers.recomputed import recomputed
from bessemer.models.standardized import StandardizedNetwork

DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    338: (3, 24, 82, 3),
    518: (3, 24, 142, 3),
    638: (3, 24, 182, 3),
}
EXPANSION = 4  # a block's channels going out over those of its 3×3 convolution, ungrouped
SIZES = {"imagenet": 224, "cifar": 32}


class BottleneckResNet(StandardizedNetwork):
    """A residual network of bottleneck blocks for square colour images in [0, 1].

    depth: 50, 101, 152, 200, 338, 518 or 638; or how many blocks each stage has, such as (3, 4, 6, 3).
    width: channels of the stem; a block of the first stage gives out four times as many, and each further stage doubles
    them. groups, width_per_group: the groups of the 3×3 convolution, and the channels of each in the first stage; as
    wide as the stem unless given.
    stem: "imagenet", a 7×7 convolution and a max pooling that take every fourth pixel, or "cifar", one 3×3 convolution
    that takes all. size: height and width of the images in pixels; 224 and 32 unless given.
    zero_gamma: whether the last batch norm of each block starts at 0 and not at 1.
    checkpointing: keep only what goes into each block and compute the block again in the backward pass.
    denoising: the filter of a denoising block after the last block of each stage (`bessemer.layers.Denoising`), or ""
    for none; denoise_all: after every block.
    dropout: the share left out before the last layer.

    Raises `UsageError` for settings that describe no network.
    """

    image_shape = (3, 224, 224)  # of the defaults

    def __init__(
        self,
        classes: int = 1000,
        dropout: float = 0.0,
        depth: int | Sequence[int] = 50,
        width: int = 64,
        groups: int = 1,
        width_per_group: int | None = None,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        size: int | None = None,
        zero_gamma: bool = True,
        checkpointing: bool = False,
        denoising: str = "",
        denoise_all: bool = False,
    ) -> None:
        super().__init__(classes, dropout)
        plan = blocks(depth)
        if stem not in SIZES:
            raise UsageError(f"BottleneckResNet: stem should be {' or '.join(map(repr, SIZES))}, not {stem!r}")
        if denoise_all and not denoising:
            raise UsageError("BottleneckResNet: denoise_all asks for denoising blocks; name their filter as denoising")
        size = SIZES[stem] if size is None else size
        width_per_group = width if width_per_group is None else width_per_group
        named = {"width": width, "groups": groups, "width_per_group": width_per_group, "size": size}
        for name, value in named.items():
            if not _counts(value):
                raise UsageError(f"BottleneckResNet: {name} should be a whole number from 1 upwards, not {value!r}")
        self.image_shape = (3, size, size)
        large = stem == "imagenet"
        self.stem = _convolution(3, width, 7 if large else 3, stride=2 if large else 1)
        self.norm = nn.BatchNorm2d(width)
        self.shrink = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.stages = nn.Sequential()
        channels = width
        for number, count in enumerate(plan):
            inside, out = (groups * width_per_group) << number, (EXPANSION * width) << number
            stage = _Stage(checkpointing)
            for place in range(count):
                stride = 2 if number and not place else 1
                stage.append(Bottleneck(channels, inside, out, stride, groups, zero_gamma))
                channels = out
                if denoising and (denoise_all or place == count - 1):
                    stage.append(Denoising(out, denoising))
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = self.shrink(relu(self.norm(self.stem(self.normalize(images)))))
        x = self.pool(self.stages(x)).flatten(1)
        return self.fc(self.dropout(x))


class _Stage(nn.Sequential):
    """Blocks one after the other; with checkpointing, each is computed again where a gradient asks for it."""

    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:
            x = recomputed(block, x)
        return x


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution with batch norm, and a short cut around them.

    inside: channels of the 3×3 convolution, which has the stride.
    """

    def __init__(self, channels: int, inside: int, out: int, stride: int, groups: int, zero_gamma: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, inside, 1)
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv2 = _convolution(inside, inside, 3, stride, groups)
        self.norm2 = nn.BatchNorm2d(inside)
        self.conv3 = _convolution(inside, out, 1)
        self.norm3 = nn.BatchNorm2d(out)
        self.short: nn.Module = nn.Identity()
        if (channels, stride) != (out, 1):
            self.short = nn.Sequential(_convolution(channels, out, 1, stride), nn.BatchNorm2d(out))
        if zero_gamma:
            nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The block's answer, after its last ReLU."""
        y = relu(self.norm1(self.conv1(x)))
        y = relu(self.norm2(self.conv2(y)))
        return relu(self.norm3(self.conv3(y)) + self.short(x))


def _convolution(channels: int, out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels, out, size, stride, padding=size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def blocks(depth: int | Sequence[int]) -> tuple[int, ...]:
    """How many blocks each stage has. Raises `UsageError` for what is neither a known depth nor such numbers."""
    if isinstance(depth, list | tuple) and depth and all(_counts(count) for count in depth):
        return tuple(depth)
    if not isinstance(depth, int) or depth not in DEPTHS:
        raise UsageError(
            f"BottleneckResNet: depth should be one of {', '.join(str(known) for known in DEPTHS)}, or how many blocks "
            f"each stage has, such as [3, 4, 6, 3], not {depth!r}"
        )
    return DEPTHS[depth]


def _counts(value: object) -> bool:
    """Whether it is a whole number from 1 upwards."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
