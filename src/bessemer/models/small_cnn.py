"""The small convolutional network on which the literature trains robust MNIST classifiers.

It is the `SmallCNN` of H. Zhang, Y. Yu, J. Jiao, E. P. Xing, L. El Ghaoui and M. I. Jordan, "Theoretically principled
trade-off between robustness and accuracy" (TRADES, arXiv:1901.08573), after their code: four 3×3 convolutions without
padding, a 2×2 max pooling after each second one, three fully connected layers, a ReLU after every hidden layer. Pixels
stay as they are, in [0, 1]. Convolutions start as in "Delving deep into rectifiers" (2015), fan in; hidden fully
connected layers as PyTorch starts them; the last layer starts at zero, so that the untrained network is undecided.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from bessemer.models.network import Network


class SmallCNN(Network):
    """TRADES' small network for 28×28 grey images in [0, 1]: 312,202 parameters at 10 classes.

    dropout: the share left out after the first fully connected layer, 0.5 in the original.
    """

    image_shape = (1, 28, 28)

    def __init__(self, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__(classes, dropout)
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.conv3 = nn.Conv2d(32, 64, 3)
        self.conv4 = nn.Conv2d(64, 64, 3)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(64 * 4 * 4, 200)
        self.fc2 = nn.Linear(200, 200)
        self.fc3 = nn.Linear(200, classes)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.fc3.weight)
        nn.init.zeros_(self.fc3.bias)

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        self.require(images)
        x = self.relu(self.conv1(images))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        x = self.pool(self.relu(self.conv4(x)))
        x = self.dropout(self.relu(self.fc1(x.flatten(1))))
        return self.fc3(self.relu(self.fc2(x)))
