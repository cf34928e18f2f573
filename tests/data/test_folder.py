"""Folders of images: found, decoded, squared, cached; and a sentence for each thing that can be wrong."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from bessemer import data
from bessemer.data import folder
from bessemer.errors import DataError, UsageError


def picture(number, height=6, width=6, channels=3):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def home(tmp_path):
    """Two classes; 20 and 12 images to train, 3 each in val."""
    for part, counts in (("train", (20, 12)), ("val", (3, 3))):
        for label, (name, count) in enumerate(zip(("cat", "dog"), counts, strict=True)):
            for number in range(count):
                save(tmp_path / "pets" / part / name / f"{number:02}.png", picture([part == "val", label, number]))
    return tmp_path / "pets"


def load(home, **settings):
    return data.load("folder", path=str(home), **settings)


def as_set(images):
    return {image.numpy().tobytes() for image in images}


def test_images_and_labels_come_as_they_lie_in_the_folders(home):
    loaded = load(home)
    assert loaded.classes == ("cat", "dog")
    assert loaded.name == "pets"
    expected = [picture([True, label, number]).transpose(2, 0, 1) for number in range(3) for label in (0, 1)]
    assert np.array_equal(loaded.test.images.numpy(), np.stack(expected))
    assert loaded.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert loaded.image_shape == (3, 6, 6)


def test_without_a_test_part_a_tenth_of_each_class_is_held_out(home):
    loaded = load(home)
    assert loaded.validation.labels.tolist() == [0, 1, 0]
    assert loaded.train.labels.tolist() == [0] * 18 + [1] * 11
    held, kept = as_set(loaded.validation.images), as_set(loaded.train.images)
    everything = {
        np.ascontiguousarray(picture([False, label, number]).transpose(2, 0, 1)).tobytes()
        for label, count in ((0, 20), (1, 12))
        for number in range(count)
    }
    assert held | kept == everything
    assert not held & kept
    assert as_set(load(home).validation.images) == held


def test_with_a_test_part_val_validates_and_nothing_is_held_out(home):
    for name in ("cat", "dog"):
        save(home / "test" / name / "1.png", picture(9))
    loaded = load(home)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [32, 6, 2]
    assert set(loaded.validation.labels[:2].tolist()) == {0, 1}


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "PNG", "JPG"])
def test_every_format_is_decoded_as_pillow_does_alone(home, ending):
    file = save(home / "val" / "cat" / f"99.{ending}", picture(5))
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(load(home).test.images[-1].numpy(), expected)


def test_other_files_and_hidden_folders_are_passed_over(home):
    (home / "train" / ".thumbnails").mkdir()
    (home / "train" / "cat" / "notes.txt").write_text("x")
    (home / "README").write_text("x")
    assert len(load(home).train) == 29


def test_size_shrinks_to_cover_the_square_and_cuts_out_the_middle(home):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 4:20] = [255, 0, 128]  # the middle third survives, and a margin for the filter
    save(home / "val" / "cat" / "99.png", wide)
    image = load(home, size=4).test.images[-1]
    assert image.shape == (3, 4, 4)
    assert image.flatten(1).unique(dim=1).flatten().tolist() == [255, 0, 128]


def test_images_of_several_sizes_without_a_setting_are_refused_by_name(home):
    odd = save(home / "val" / "dog" / "99.png", picture(0, 6, 9))
    first = home / "train" / "cat" / "00.png"
    with pytest.raises(DataError, match=re.escape(f"size: {first} has 6×6 pixels but {odd} has 9×6; ")):
        load(home)
    assert load(home, size=6).image_shape == (3, 6, 6)


def grey_folder(tmp_path):
    for part in ("train", "val"):
        for number, name in enumerate("ab"):
            save(tmp_path / "grey" / part / name / "0.png", picture(number, channels=1))
            save(tmp_path / "grey" / part / name / "1.png", picture(number + 2, channels=1))
    return tmp_path / "grey"


def test_images_stay_grey_where_every_one_is_grey(tmp_path):
    home = grey_folder(tmp_path)
    loaded = load(home)
    assert loaded.image_shape == (1, 6, 6)
    assert np.array_equal(loaded.test.images[0, 0].numpy(), picture(0, channels=1))
    save(home / "val" / "b" / "9.png", picture(1))
    mixed = load(home)
    assert mixed.image_shape == (3, 6, 6)
    assert np.array_equal(mixed.test.images[mixed.test.labels == 0][0].numpy(), np.stack([picture(0, channels=1)] * 3))
    assert np.array_equal(mixed.test.images[4].numpy(), picture(1).transpose(2, 0, 1))


def test_16_bit_grey_keeps_its_levels(tmp_path):
    home = grey_folder(tmp_path)
    levels = (picture(0, channels=1).astype(np.uint16)) * 257
    save(home / "val" / "a" / "0.png", levels)
    assert np.array_equal(load(home).test.images[0, 0].numpy(), picture(0, channels=1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_other_modes_become_grey_or_rgb(home, mode):
    image = Image.fromarray(picture(0)).convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes([0, 128] * 10)
    image.save(home / "val" / "cat" / ("99.jpg" if mode == "CMYK" else "99.png"))
    assert load(home).image_shape == (3, 6, 6)


def test_a_photo_is_turned_upright_as_its_camera_says(home):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    Image.fromarray(picture(0)).save(home / "val" / "cat" / "99.png", exif=exif)
    expected = np.rot90(picture(0), -1).transpose(2, 0, 1)
    assert np.array_equal(load(home).test.images[-1].numpy(), expected)


def test_what_was_decoded_is_kept_until_a_file_or_a_setting_changes(home, tmp_path, monkeypatch):
    decoded = []
    decode = folder._decode
    monkeypatch.setattr(folder, "_decode", lambda path, size: decoded.append(path) or decode(path, size))
    first = load(home)
    assert len(decoded) == 38
    again = load(home)
    assert len(decoded) == 38
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(first, split).images, getattr(again, split).images)
        assert torch.equal(getattr(first, split).labels, getattr(again, split).labels)
    load(home, size=4)
    assert len(decoded) == 2 * 38
    changed = save(home / "val" / "dog" / "02.png", picture(77))
    os.utime(changed, ns=(1, 1))
    assert np.array_equal(load(home).test.images[5].numpy(), picture(77).transpose(2, 0, 1))
    assert len(decoded) == 3 * 38
    assert len(list((tmp_path / "cache" / "bessemer" / "folders").iterdir())) == 2


def test_a_damaged_cache_is_made_again(home, tmp_path):
    expected = load(home).test.images
    (kept,) = (tmp_path / "cache" / "bessemer" / "folders").iterdir()
    for content in (b"", kept.read_bytes()[:100], b"x" * 1000):
        kept.write_bytes(content)
        assert torch.equal(load(home).test.images, expected)


def test_a_cache_that_cannot_be_written_is_only_a_warning(home, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="decoded again next time"):
        loaded = load(home)
    assert len(loaded.test) == 6


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_an_unreadable_image_is_named(home, content, ending):
    file = save(home / "train" / "dog" / f"bad.{ending}", picture(0, 64, 64))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=re.escape(f"{file} cannot be read as an image")):
        load(home)


def test_a_link_that_leads_nowhere_is_named(home):
    (home / "val" / "cat" / "99.png").symlink_to(home / "gone.png")
    with pytest.raises(DataError, match=r"99\.png cannot be read as an image \(No such file"):
        load(home)


def test_missing_parts_and_classes_are_named(home):
    (home / "val" / "dog").rename(home / "val" / "dgo")
    with pytest.raises(DataError, match=rf"{home}/val lacks the class 'dog' that train has"):
        load(home)
    (home / "val" / "dog").mkdir()
    with pytest.raises(DataError, match=rf"{home}/val has a class 'dgo' that train lacks"):
        load(home)
    (home / "val" / "dgo").rename(home / "dgo")
    with pytest.raises(DataError, match=rf"{home}/val/dog holds no image; put .png, .jpg, .jpeg, .webp files there"):
        load(home)
    (home / "val").rename(home / "validation")
    with pytest.raises(DataError, match=rf"{home}/val is missing"):
        load(home)
    (home / "train" / "dog").rename(home / "dog")
    with pytest.raises(DataError, match="holds 1 class folders where at least two are expected"):
        load(home)


@pytest.mark.parametrize("size", [0, -3, 2.5, "64"])
def test_a_size_that_cannot_be_is_refused(home, size):
    with pytest.raises(UsageError, match=f"size: images cannot be {size} pixels wide"):
        load(home, size=size)


def test_the_folder_is_looked_for_below_the_data_directory(home, tmp_path):
    assert len(data.load("folder", tmp_path, path="pets").test) == 6
    with pytest.raises(
        DataError, match=rf"path: there is no folder cats nor {tmp_path}/cats nor .*; write its full path"
    ):
        data.load("folder", tmp_path, path="cats")
    with pytest.raises(UsageError, match="path: the data set `folder` needs"):
        data.load("folder")


def test_the_first_test_images_are_of_all_classes_in_their_shares(tmp_path):
    for name, count in (("cat", 12), ("dog", 4), ("owl", 8)):
        for number in range(count):
            save(tmp_path / name / f"{number:02}.png", np.full((6, 6, 3), number, np.uint8))
    loaded = load(tmp_path)
    assert loaded.test.labels[:6].bincount().tolist() == [3, 1, 2]
    assert loaded.test.labels.bincount().tolist() == [12, 4, 8]
    for label, count in enumerate((12, 4, 8)):
        own = loaded.test.images[loaded.test.labels == label]
        assert own[:, 0, 0, 0].tolist() == list(range(count)), "pictures and labels no longer belong together"


def test_hidden_files_are_no_images(home):
    """What macOS leaves in archives."""
    (home / "val" / "dog" / "._00.png").write_bytes(b"a resource fork")
    assert len(load(home).test) == 6


def test_without_anything_to_train_the_message_says_what_to_name(home):
    (home / "train").rename(home / "elsewhere")
    with pytest.raises(DataError, match=rf"if there is nothing to train, name {home}/val"):
        load(home)
    assert len(load(home / "val").test) == 6
    assert load(home / "val").name == f"{home.name}/val"
