"""Wide residual networks for 32×32 images.

S. Zagoruyko and N. Komodakis, "Wide residual networks", 2016 (arXiv:1605.07146): WRN-d-k has d = 6n + 4 layers (a 3×3
stem of 16 channels, three stages of n pre-activation blocks, a last batch norm and ReLU, one linear layer) and k times
the channels of a residual network of that depth: 16k, 32k and 64k. Dropout stands inside the blocks, before their
second convolution, as in the paper's section 2.4. WRN-34-10 and WRN-28-10 are the large networks of the literature on
robust training.

Where the shape changes, the short cut is a 1×1 convolution of the activated input; d does not count these three.
Convolutions start as in "Delving deep into rectifiers" (2015), fan out.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from bessemer.errors import UsageError
from bessemer.models.preact_resnet import PreActBlock
from bessemer.models.standardized import StandardizedNetwork

STEM = 16  # channels before the first block, at every width


class WideResNet(StandardizedNetwork):
    """A WRN-`depth`-`widen_factor` for 32×32 colour images in [0, 1].

    depth: 6n + 4. widen_factor: k, by which the stages' 16, 32 and 64 channels are multiplied. dropout: the share left
    out in every block, before its second convolution.
    """

    image_shape = (3, 32, 32)

    def __init__(self, classes: int = 10, dropout: float = 0.0, depth: int = 28, widen_factor: int = 10) -> None:
        super().__init__(classes, dropout)
        whole = isinstance(depth, int) and not isinstance(depth, bool)
        if not whole or depth < 10 or (depth - 4) % 6:
            raise UsageError(f"WideResNet: depth should be 6n + 4 (10, 16, 22, 28, 34, …), not {depth!r}")
        if isinstance(widen_factor, bool) or not isinstance(widen_factor, int) or widen_factor < 1:
            raise UsageError(f"WideResNet: widen_factor should be a whole number from 1 upwards, not {widen_factor!r}")
        self.stem = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        channels = STEM
        for number in range(3):
            out = (STEM * widen_factor) << number
            stage = nn.Sequential()
            for place in range((depth - 4) // 6):
                stage.append(PreActBlock(channels, out, 2 if number and not place else 1, self.dropout))
                channels = out
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = self.stages(self.stem(self.normalize(images)))
        return self.fc(self.pool(relu(self.norm(x))).flatten(1))
