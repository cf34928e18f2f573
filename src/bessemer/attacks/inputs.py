"""What may come through the door of an attack or an evaluation, and what is refused there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bessemer.errors import ImagesError, LabelsError, ModelError, NoNumbersError


def check_images(images: Tensor, box: tuple[float, float] | None = (0.0, 1.0)) -> None:
    """Refuse (`ImagesError`) what is not a batch of float images inside the box."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 2:
        found = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise ImagesError(
            f"images should be floats of shape (N, C, H, W) in [0, 1], not {found}; divide grey levels by 255"
        )
    if not len(images):
        return
    low, high = (value.item() for value in torch.aminmax(images.detach()))
    if math.isnan(low) or math.isnan(high):
        raise ImagesError(
            "images hold NaN; look at the normalisation before the model, a standard deviation of 0 divides by 0"
        )
    if box is not None and not (low >= box[0] and high <= box[1]):
        raise ImagesError(
            f"images should lie in [{box[0]:g}, {box[1]:g}] but run from {low:.3g} to {high:.3g}; pass raw pixels and "
            "let the model's first layer, bessemer.models.Normalize, subtract the mean"
        )


def check_labels(labels: Tensor, images: Tensor, what: str = "labels") -> None:
    """Refuse (`LabelsError`) what is not one whole number per image."""
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise LabelsError(f"{what} should be whole numbers, one class per image, not {found}")
    if labels.shape != images.shape[:1]:
        raise LabelsError(f"{len(images)} images need {len(images)} {what}, not the shape {tuple(labels.shape)}")


def check_logits(logits: Tensor, labels: Tensor, classes: int | None = None) -> None:
    """Refuse (`ModelError`, `LabelsError`) what is not a row of logits per image that the labels fit.

    `classes` is how many the data set has, where that is known.
    """
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the model should return a tensor of logits, not {type(logits).__name__}; wrap it to return only these"
        )
    if logits.dim() != 2 or len(logits) != len(labels) or not logits.is_floating_point():
        raise ModelError(
            f"the model should return logits of shape (N, classes), not {logits.dtype} of shape {tuple(logits.shape)} "
            f"for {len(labels)} images"
        )
    if logits.shape[1] < 2:
        raise ModelError("the model returns one number per image; turn a score f into the two logits (-f/2, f/2)")
    if not len(logits):
        return
    values = logits.detach()
    # of one image alone NaN tells nothing about the model: an attack may have led the image there
    if len(values) > 1 and torch.isnan(values).any(1).all():
        raise NoNumbersError(f"the model returns NaN for each of {len(values)} images")
    if classes is not None and logits.shape[1] != classes:
        raise ModelError(f"the model returns {logits.shape[1]} logits per image, but the data has {classes} classes")
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= logits.shape[1]:
        raise LabelsError(
            f"labels should lie in 0 … {logits.shape[1] - 1}, the classes the model knows, but run from {low} to {high}"
        )
    # one row may look like probabilities by chance
    if len(values) > 1 and bool((values >= 0).all() & ((values.float().sum(1) - 1).abs() < 1e-3).all()):
        raise ModelError(
            "the model returns probabilities (its rows are positive and sum to 1), not logits; "
            "take the softmax off its end, it hides gradients"
        )
