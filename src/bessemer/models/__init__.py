"""Networks from images in [0, 1] to logits: one file a family, one row in `MODELS`; and `Normalize`.

Nothing in Bessemer asks for these: a model is any callable from images to logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from bessemer.errors import unknown
from bessemer.models.alexnet import AlexNet
from bessemer.models.bottleneck_resnet import DEPTHS, BottleneckResNet
from bessemer.models.cifar_quick import CifarQuick
from bessemer.models.digits_net import DigitsNet
from bessemer.models.lenet import LeNet
from bessemer.models.network import Network
from bessemer.models.normalize import Normalize
from bessemer.models.preact_resnet import PreActResNet
from bessemer.models.resnet import ResNet
from bessemer.models.small_cnn import SmallCNN
from bessemer.models.wide_resnet import WideResNet

MODELS: dict[str, Callable[..., Network]] = {
    "lenet": LeNet,
    "cifar-quick": CifarQuick,
    "digits-net": DigitsNet,
    "alexnet": AlexNet,
    "resnet": ResNet,
    "small-cnn": SmallCNN,
    "preact-resnet": PreActResNet,
    "wide-resnet": WideResNet,
    "bottleneck-resnet": BottleneckResNet,
}

PUBLISHED: dict[str, tuple[dict[str, Any], ...]] = {
    "resnet": ({"depth": 18, "width": 64}, {"depth": 34, "width": 64}),
    "wide-resnet": ({"depth": 34},),
    "bottleneck-resnet": (
        *({"depth": depth} for depth in DEPTHS if depth != 50),
        {"depth": 101, "groups": 32, "width_per_group": 8},
    ),
}
"""Settings that make a published network other than the one the defaults make."""

__all__ = [
    "MODELS",
    "PUBLISHED",
    "AlexNet",
    "BottleneckResNet",
    "CifarQuick",
    "DigitsNet",
    "LeNet",
    "LearnsStatistics",
    "Network",
    "Normalize",
    "PreActResNet",
    "ResNet",
    "SmallCNN",
    "WideResNet",
    "build",
]


@runtime_checkable
class LearnsStatistics(Protocol):
    """A model that must see the training images once before training, say to subtract their mean."""

    def learn_statistics(self, images: Tensor) -> None:
        """Take what the model keeps from the training images, uint8 grey levels or floats in [0, 1]."""
        ...


def build(name: str, **settings: Any) -> Network:
    """The untrained model of that name, its weights drawn from torch's own random state.

    Raises `UsageError` for an unknown name or setting.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    allowed = inspect.signature(MODELS[name]).parameters
    for setting in settings:
        if setting not in allowed:
            raise unknown(f"setting of model {name}", setting, allowed)
    return MODELS[name](**settings)
