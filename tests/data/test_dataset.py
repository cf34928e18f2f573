"""Splits: what fits together, and the sentence where something does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bessemer.data import Dataset, Split, from_pair
from bessemer.errors import DataError, ImagesError, LabelsError

IMAGES = np.random.default_rng(0).random((5, 3, 4, 4))
LABELS = np.array([0, 1, 2, 1, 0])


@pytest.mark.parametrize("images", [IMAGES, torch.from_numpy(IMAGES).float(), IMAGES.astype(np.float32)])
@pytest.mark.parametrize(
    "labels", [LABELS, torch.from_numpy(LABELS), LABELS.astype(np.uint8), torch.tensor(LABELS).int()]
)
def test_a_pair_of_tensors_or_arrays_becomes_a_split(images, labels):
    split = from_pair(images, labels, classes=3)
    found, answers = split.at(slice(None))
    torch.testing.assert_close(found, torch.from_numpy(IMAGES).float())
    assert found.dtype == torch.float32
    assert answers.tolist() == LABELS.tolist()
    assert answers.dtype == torch.int64


def test_grey_levels_stay_bytes_and_are_read_as_fractions_of_255():
    split = from_pair((IMAGES * 255).astype(np.uint8), LABELS)
    assert split.images.dtype == torch.uint8
    assert torch.equal(split.at(slice(None))[0], split.images.float() / 255)


def test_a_double_precision_tensor_keeps_its_precision():
    assert from_pair(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)).images.dtype == torch.float64


def test_a_split_does_not_share_memory_with_the_callers_array():
    images = IMAGES.astype(np.float32)
    split = from_pair(images, LABELS)
    images[:] = 0
    assert split.images.max() > 0


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ((IMAGES - 0.5) / 0.2, "normalisation.*Normalize"),
        (np.where(IMAGES > 0.5, np.nan, IMAGES), "NaN.*normalisation"),
        (IMAGES * 255, "divide grey levels by 255"),
        (IMAGES[0], r"shape \(N, C, H, W\), not \(3, 4, 4\)"),
        ((IMAGES * 255).astype(np.int64), "uint8 grey levels or floats"),
        (np.full((5, 1, 2, 2), np.inf), "normalisation"),
        ([[0.5]], "not a list"),
    ],
    ids=["normalised", "NaN", "grey levels as floats", "one image", "int64", "infinite", "list"],
)
def test_images_that_are_no_pixels_are_refused(images, says):
    with pytest.raises(ImagesError, match=says):
        from_pair(images, LABELS)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (LABELS[:4], "5 images need 5"),
        (LABELS.astype(float), "whole-number labels"),
        (np.eye(5, dtype=int), r"of shape \(5, 5\)"),
        (LABELS - 1, "count the classes from 0, but one is -1"),
        (LABELS + 1, "should lie in 0 … 2, but one is 3"),
        ([0, 1, 2, 1, 0], "not a list"),
    ],
    ids=["too few", "floats", "one-hot", "negative", "too large", "list"],
)
def test_labels_that_do_not_fit_are_refused(labels, says):
    with pytest.raises(LabelsError, match=says):
        from_pair(IMAGES, labels, classes=3)


def test_an_empty_split_is_a_split():
    assert len(Split(torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))) == 0


def test_the_first_images_of_a_split_are_its_first_images():
    split = from_pair(IMAGES, LABELS)
    assert torch.equal(split.first(2).images, split.images[:2])
    assert len(split.first(None)) == 5


def test_a_data_set_with_a_label_beyond_its_classes_is_refused():
    split = from_pair(IMAGES, LABELS)
    assert Dataset("x", ("a", "b", "c"), split, split, split).image_shape == (3, 4, 4)
    with pytest.raises(DataError, match="labels run from 0 to 2, but there are 2 classes"):
        Dataset("x", ("a", "b"), split, split, split)
