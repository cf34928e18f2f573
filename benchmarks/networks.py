"""The networks that benchmarks are about."""

from __future__ import annotations

from bessemer.models import ResNet


def resnet18() -> ResNet:
    """A ResNet-18 for 32×32 images."""
    return ResNet(depth=18, width=64)
