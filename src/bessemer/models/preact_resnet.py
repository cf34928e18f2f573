"""Pre-activation residual networks of basic blocks for 32×32 images.

K. He, X. Zhang, S. Ren and J. Sun, "Identity mappings in deep residual networks", 2016 (arXiv:1603.05027): batch norm
and ReLU stand before each convolution, nothing follows the addition, and one more batch norm and ReLU follow the last
block. The networks for 32×32 images have a 3×3 stem of stride 1 and four stages from 64 to 512 channels; the one of 18
layers is the PreActResNet-18 on which E. Wong, L. Rice and J. Z. Kolter, "Fast is better than free" (arXiv:2001.03994)
and L. Rice, E. Wong and J. Z. Kolter, "Overfitting in adversarially robust deep learning" (arXiv:2002.11569) train.

Code that goes by this name differs in two places. Here, as in the paper's: where the shape changes, the short cut is a
1×1 convolution without batch norm of the *activated* input (others take the input itself); and the last batch norm is
there (others leave it out and have 1,024 parameters less). Convolutions start as in "Delving deep into rectifiers"
(2015), fan out; dropout before the last layer, off unless asked for.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from bessemer.errors import UsageError
from bessemer.models.resnet import FOUR_STAGES
from bessemer.models.standardized import StandardizedNetwork


class PreActResNet(StandardizedNetwork):
    """A pre-activation residual network of basic blocks for 32×32 colour images in [0, 1].

    depth: 18 or 34. width: channels of the first stage, doubled by each further one; 64 is the published width.
    dropout: the share left out before the last layer.
    """

    image_shape = (3, 32, 32)

    def __init__(self, classes: int = 10, dropout: float = 0.0, depth: int = 18, width: int = 64) -> None:
        super().__init__(classes, dropout)
        if depth not in FOUR_STAGES:
            known = " or ".join(str(known) for known in FOUR_STAGES)
            raise UsageError(f"PreActResNet: depth should be {known}, not {depth!r}")
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise UsageError(f"PreActResNet: width should be a whole number from 1 upwards, not {width!r}")
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        channels = width
        for number, count in enumerate(FOUR_STAGES[depth]):
            out = width << number
            stage = nn.Sequential()
            for place in range(count):
                stage.append(PreActBlock(channels, out, stride=2 if number and not place else 1))
                channels = out
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = self.stages(self.stem(self.normalize(images)))
        x = self.pool(relu(self.norm(x))).flatten(1)
        return self.fc(self.dropout(x))


class PreActBlock(nn.Module):
    """Batch norm, ReLU and a 3×3 convolution, twice, and a short cut around them.

    Where the shape changes, the short cut is a 1×1 convolution of the activated input. dropout: a layer before the
    second convolution, where one is wanted.
    """

    def __init__(self, channels: int, out: int, stride: int, dropout: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.dropout = nn.Identity() if dropout is None else dropout
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        changes = (channels, stride) != (out, 1)
        self.short = nn.Conv2d(channels, out, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The sum of both ways; the next block's first batch norm and ReLU are its activation."""
        activated = relu(self.norm1(x))
        y = self.conv2(self.dropout(relu(self.norm2(self.conv1(activated)))))
        return y + (x if self.short is None else self.short(activated))
