"""A small convolutional network for the embedded 8×8 digits, trained in seconds on a CPU."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from bessemer.models.network import Network


class DigitsNet(Network):
    """Two convolutions and two fully connected layers for 8×8 grey images in [0, 1].

    `dropout` is the share left out between the fully connected layers, 0 by default.
    """

    image_shape = (1, 8, 8)

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__(classes, dropout)
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.ip1 = nn.Linear(64 * 2 * 2, 128)
        self.ip2 = nn.Linear(128, classes)

    def forward(self, images: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = self.pool(self.relu(self.conv1(images)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.ip1(x.flatten(1)))
        return self.ip2(self.dropout(x))
