"""CIFAR-quick as Caffe's CIFAR-10 example defines it, with the Dropout layer that BANG adds.

Caffe's `cifar10_quick_train_test.prototxt` (after A. Krizhevsky's cuda-convnet): every pooling rounds its
output size up (32, 16, 8, 4), the first block pools before its ReLU, and there is none after ip1. A. Rozsa,
M. Günther and T. Boult, "Towards Robust Deep Neural Networks with BANG" (arXiv:1612.00138) train it with one
Dropout layer; they do not say where, and here it sits between ip1 and ip2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bessemer.errors import ImagesError
from bessemer.models.network import Network
from bessemer.models.normalize import Normalize

CHUNK = 1000  # images summed at once: float64 copies of the whole training set need not fit in memory


class CifarQuick(Network):
    """Caffe's CIFAR-quick for 32×32 colour images (RGB) in [0, 1]: 145,578 parameters at 10 classes.

    Caffe subtracts the training set's mean image from grey levels 0 … 255 and scales no further; so does this
    network, inside. The mean image is zero until `learn_statistics` sets it. `dropout` is the share left out
    after ip1, 0 for the plain baseline.
    """

    image_shape = (3, 32, 32)

    def __init__(self, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__(classes, dropout)
        self.normalize = Normalize(mean=torch.zeros(self.image_shape), std=1 / 255)
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.relu3 = nn.ReLU(inplace=True)
        self.pool3 = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.ip1 = nn.Linear(64 * 4 * 4, 64)
        self.ip2 = nn.Linear(64, classes)
        gaussian_(self.conv1, 0.0001)
        gaussian_(self.conv2, 0.01)
        gaussian_(self.conv3, 0.01)
        gaussian_(self.ip1, 0.1)
        gaussian_(self.ip2, 0.1)

    def forward(self, images: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = self.normalize(images)
        x = self.relu1(self.pool1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.pool3(self.relu3(self.conv3(x)))
        x = self.ip1(x.flatten(1))
        return self.ip2(self.dropout(x))

    @torch.no_grad()
    def learn_statistics(self, images: UInt8[Tensor, "n 3 32 32"] | Float[Tensor, "n 3 32 32"]) -> None:
        """Set the mean image from the training images, uint8 grey levels or floats in [0, 1]."""
        if images.shape[1:] != self.image_shape or not len(images):
            raise ImagesError(f"CifarQuick learns its mean image from (N, 3, 32, 32) images, not {tuple(images.shape)}")
        total = torch.zeros(self.image_shape, dtype=torch.float64, device=images.device)
        for chunk in images.split(CHUNK):
            total += chunk.sum(0, dtype=torch.float64)
        largest = 255 if images.dtype == torch.uint8 else 1
        self.normalize.mean.copy_(total / (len(images) * largest))


def gaussian_(layer: nn.Conv2d | nn.Linear, deviation: float) -> None:
    """Caffe's "gaussian" filler: normal with mean 0, zero bias."""
    nn.init.normal_(layer.weight, std=deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
