"""LeNet as Caffe's MNIST example defines it, with the Dropout layer that BANG adds.

Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998, in the form of Caffe's
`lenet_train_test.prototxt`: no non-linearity but max pooling and one ReLU. A. Rozsa, M. Günther and T. Boult,
"Towards Robust Deep Neural Networks with BANG" (arXiv:1612.00138) train it with one Dropout layer; they do
not say where, and here it sits between ip1 and ip2.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from bessemer.models.network import Network


class LeNet(Network):
    """Caffe's LeNet for 28×28 grey images in [0, 1]: 431,080 parameters at 10 classes.

    Caffe multiplies grey levels 0 … 255 by 1/256; so does this network, inside. `dropout` is the share left
    out after relu1, 0 for the plain baseline.
    """

    image_shape = (1, 28, 28)

    def __init__(self, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__(classes, dropout)
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.ip1 = nn.Linear(50 * 4 * 4, 500)
        self.relu1 = nn.ReLU(inplace=True)
        self.ip2 = nn.Linear(500, classes)
        for layer in (self.conv1, self.conv2, self.ip1, self.ip2):
            xavier_(layer)

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = images * (255 / 256)
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        x = self.relu1(self.ip1(x.flatten(1)))
        return self.ip2(self.dropout(x))


def xavier_(layer: nn.Conv2d | nn.Linear) -> None:
    """Caffe's "xavier" filler: uniform within ±sqrt(3 / fan_in), zero bias. PyTorch's counts fan_out too."""
    bound = math.sqrt(3 / layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
