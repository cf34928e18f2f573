"""The embedded digits are scikit-learn's, each once, split the same way every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bessemer import data
from bessemer.errors import DataError, UsageError


def test_the_splits_hold_every_digit_once():
    loaded, original = data.load("digits"), load_digits()
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [1197, 200, 400]
    found = torch.cat([split.images for split in (loaded.train, loaded.validation, loaded.test)]).flatten(1).numpy()
    expected = np.rint(original.data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))


def test_the_labels_belong_to_their_images():
    label = {
        bytes(np.rint(image * 255 / 16).astype(np.uint8)): target
        for image, target in zip(*load_digits(return_X_y=True), strict=True)
    }
    test = data.load("digits").test
    assert [label[bytes(image)] for image in test.images.flatten(1).numpy()] == test.labels.tolist()


def test_the_splits_are_always_the_same():
    assert torch.equal(data.load("digits").test.images, data.load("digits").test.images)


def test_the_digits_are_as_published():
    assert "1,397 training and 400 test images, 10 classes: as published" in data.check("digits")


def test_labels_that_belong_to_other_images_are_noticed():
    digits = data.load("digits")
    shifted = data.Split(digits.test.images, (digits.test.labels + (digits.test.labels == 3)) % 10)
    wrong = data.Dataset("digits", digits.classes, digits.train, digits.validation, shifted)
    with pytest.raises(DataError, match="the labels belong to other images"):
        data.ABOUT["digits"].verify(wrong)


def test_an_unknown_data_set_or_setting_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(UsageError, match=r"setting of the data set cifar10: 'validaton'.*did you mean 'validation'"):
        data.load("cifar10", validaton=0)
