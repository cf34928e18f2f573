"""AlexNet for 32×32 images, with first-layer filters as large as the original's.

A. Krizhevsky, I. Sutskever and G. Hinton, "ImageNet classification with deep convolutional neural networks", 2012.
Allen-Zhu and Li study the first layer of an AlexNet trained on CIFAR-10 ("Feature purification", arXiv:2005.10190);
which one is not known to us, so this is ours. What is as in 2012: five convolutions of 11, 5, 3, 3 and 3 pixels, the
ratio of their widths (96, 256, 384, 384, 256), overlapping 3×3 max pooling with stride 2 after the first, second and
fifth, a ReLU after every hidden layer, dropout. What differs:

- images are 32×32 and not 224×224; the first layer steps by 2 pixels, not by 4, and pads so that its maps are 16×16;
- one hidden fully connected layer and not two, of 1,024 units at the full width of 96, not 4,096;
- each channel is brought to mean 0 and deviation 1, where the original subtracts the mean image;
- no local response normalisation, and no groups (the original is split over two GPUs);
- dropout before the last layer alone; weights start as He et al. propose ("Delving deep into rectifiers", 2015).

11×11 filters cover a third of a small image: large enough to look at, and to hold a part of an object.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from bessemer.errors import UsageError
from bessemer.models.standardized import StandardizedNetwork


class AlexNet(StandardizedNetwork):
    """An AlexNet for 32×32 colour images in [0, 1], without normalisation between its layers.

    width: how many filters the first layer has; all other layers grow with it. 96 is the full size (98.8 million
    multiply-adds an image), 24 takes 7.9 million. dropout: the share left out before the last layer.
    """

    image_shape = (3, 32, 32)

    def __init__(self, classes: int = 10, dropout: float = 0.5, width: int = 96) -> None:
        super().__init__(classes, dropout)
        if isinstance(width, bool) or not isinstance(width, int) or width < 3:
            raise UsageError(f"AlexNet: width should be a whole number from 3 upwards, not {width!r}")
        second, third, hidden = width * 8 // 3, width * 4, width * 32 // 3
        self.conv1 = nn.Conv2d(3, width, 11, stride=2, padding=5)
        self.conv2 = nn.Conv2d(width, second, 5, padding=2)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.conv4 = nn.Conv2d(third, third, 3, padding=1)
        self.conv5 = nn.Conv2d(third, second, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc6 = nn.Linear(second * 2 * 2, hidden)
        self.fc7 = nn.Linear(hidden, classes)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5, self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is self.fc7 else "relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = self.normalize(images)
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.pool(self.relu(self.conv5(x)))
        x = self.relu(self.fc6(x.flatten(1)))
        return self.fc7(self.dropout(x))
