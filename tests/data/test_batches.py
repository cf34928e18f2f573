"""The stream of batches and its augmentation, against loops over single images."""

from __future__ import annotations

import pytest
import torch

from bessemer import randomness
from bessemer.data import Augmentation, Batches, Split
from bessemer.errors import UsageError


@pytest.fixture
def split():
    images = torch.randint(0, 256, (10, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(10))


def naive(image, number, seed, crop=0, flip=False, noise=0.0):
    """One image, changed pixel by pixel with its own draws."""
    index = torch.tensor([number])
    channels, height, width = image.shape
    if flip and randomness.integers(2, seed, index, stream=1).item():
        image = torch.stack([image[:, :, width - 1 - column] for column in range(width)], dim=2)
    if crop:
        down = randomness.integers(2 * crop + 1, seed, index, stream=2).item() - crop
        right = randomness.integers(2 * crop + 1, seed, index, stream=3).item() - crop
        moved = torch.zeros_like(image)
        for row in range(height):
            for column in range(width):
                if 0 <= row + down < height and 0 <= column + right < width:
                    moved[:, row, column] = image[:, row + down, column + right]
        image = moved
    if noise:
        image = (image + noise * randomness.normal((channels, height, width), seed, index, stream=4)[0]).clamp(0, 1)
    return image


@pytest.mark.parametrize(
    "settings",
    [{"crop": 2}, {"flip": True}, {"noise": 0.3}, {"crop": 1, "flip": True, "noise": 0.1}, {"crop": 7}],
    ids=str,
)
def test_augmentation_equals_a_loop_over_images(settings):
    images, index = torch.rand(40, 2, 6, 5, generator=torch.Generator().manual_seed(1)), torch.arange(100, 140)
    changed = Augmentation(**settings)(images, 9, index)
    expected = torch.stack([naive(image, number, 9, **settings) for image, number in zip(images, index, strict=True)])
    torch.testing.assert_close(changed, expected, rtol=0, atol=0)
    assert not torch.equal(changed, images)


def test_augmentation_draws_every_shift_and_mirrors_half_of_the_images():
    index = torch.arange(4000)
    mirrored = Augmentation(flip=True)(torch.tensor([0.0, 1.0]).expand(4000, 1, 1, 2), 0, index)[:, 0, 0, 0]
    assert abs(mirrored.mean() - 0.5) < 0.04
    dot = torch.zeros(4000, 1, 5, 5)
    dot[:, :, 2, 2] = 1
    shifted = Augmentation(crop=2)(dot, 0, index).mean(0)
    assert ((shifted - 1 / 25).abs() < 0.016).all()  # five standard deviations


def test_splitting_a_batch_changes_no_augmentation():
    images, index = torch.rand(9, 1, 8, 8), torch.tensor([4, 1, 1000, 7, 0, 2, 9, 30, 5])
    augmentation = Augmentation(crop=2, flip=True, noise=0.2)
    parts = [augmentation(images[part], 3, index[part]) for part in (slice(0, 1), slice(1, 6), slice(6, 9))]
    assert torch.equal(augmentation(images, 3, index), torch.cat(parts))


def test_no_augmentation_gives_back_the_images():
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(Augmentation()(images, 0, torch.arange(3)), images)


@pytest.mark.parametrize("settings", [{"crop": -1}, {"noise": -0.1}])
def test_a_negative_augmentation_is_refused(settings):
    with pytest.raises(UsageError, match="cannot be negative"):
        Augmentation(**settings)


def test_without_shuffling_images_come_in_file_order_and_wrap_around(split):
    batches = Batches(split, 4, shuffle=False)
    read = torch.cat([batches.next().index for _ in range(10)])
    assert read.tolist() == [place % 10 for place in range(40)]


def test_a_batch_holds_the_images_its_index_names(split):
    batch = Batches(split, 7, seed=3).next()
    assert torch.equal(batch.images, split.images[batch.index].float() / 255)
    assert torch.equal(batch.labels, split.labels[batch.index])
    assert len(batch) == 7


@pytest.mark.parametrize("size", [1, 3, 5, 7, 10])
def test_every_image_comes_once_an_epoch_in_a_new_order(split, size):
    batches = Batches(split, size, seed=1)
    read = torch.cat([batches.next().index for _ in range(10)]).tolist()
    epochs = [read[start : start + 10] for start in range(0, len(read) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert Batches(split, 10, seed=1).next().index.tolist() == epochs[0]
    assert Batches(split, 10, seed=2).next().index.tolist() != epochs[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_setting_the_position_resumes_the_same_batches(split, shuffle):
    augmentation = Augmentation(crop=1, flip=True, noise=0.1)
    undisturbed = Batches(split, 3, seed=5, shuffle=shuffle, augmentation=augmentation)
    expected = [undisturbed.next() for _ in range(12)]
    for stop in (1, 3, 4, 7):  # 4 batches of 3 end inside the second epoch
        resumed = Batches(split, 3, seed=5, shuffle=shuffle, augmentation=augmentation)
        resumed.position = stop * 3
        for batch in expected[stop:]:
            again = resumed.next()
            assert torch.equal(again.images, batch.images)
            assert torch.equal(again.index, batch.index)
            assert again.seed == batch.seed


def test_no_two_batches_share_a_seed(split):
    batches = Batches(split, 5)
    assert len({batches.next().seed for _ in range(200)}) == 200


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_batch_that_does_not_fit_the_data_is_refused(split, size):
    with pytest.raises(UsageError, match="batch_size"):
        Batches(split, size)
