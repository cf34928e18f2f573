"""Single files: how a test image and a training image are cut, and what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from photos import photo, rotated, save
from PIL import Image, ImageOps, JpegImagePlugin
from scipy.stats import kstest, uniform

from bessemer import randomness
from bessemer.data import decoding
from bessemer.errors import DataError

SIZES = [(500, 375), (375, 500), (60, 47), (47, 60), (50, 50), (33, 400), (1000, 31), (17, 9)]


def upright(path):
    with Image.open(path) as file:
        return ImageOps.exif_transpose(file).convert("RGB")


@pytest.mark.parametrize("sides", SIZES, ids=str)
@pytest.mark.parametrize("ending", ["JPEG", "png"])
def test_the_centre_square_is_what_pillow_makes_of_it(tmp_path, sides, ending):
    file = save(tmp_path / f"x.{ending}", photo(0, *sides))
    covering = ImageOps.cover(upright(file), (48, 48), Image.Resampling.BICUBIC)
    assert min(covering.size) == 48
    left, top = (covering.width - 40) // 2, (covering.height - 40) // 2
    expected = np.asarray(covering)[top : top + 40, left : left + 40]
    assert np.array_equal(decoding.centre_square(file, 40, 48, ""), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "P", "RGBA", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = photo(0, 50, 40)
    image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    file = save(tmp_path / ("x.jpg" if mode in ("L", "CMYK") else "x.png"), image)
    draws = randomness.uniform((10, 5), 0, torch.tensor([0])).tolist()[0]
    for square in (decoding.centre_square(file, 16, 18, ""), decoding.random_square(file, 16, draws, "")):
        assert square.shape == (16, 16, 3)
        assert square.dtype == np.uint8
        if mode in ("L", "I;16"):
            assert (square == square[..., :1]).all()
            assert np.ptp(square) > 20


def boxes(width, height, count=6000):
    draws = randomness.uniform((10, 5), 3, torch.arange(count)).tolist()
    return np.array([decoding.crop_box(width, height, own) for own in draws])


def test_a_crop_has_8_to_100_percent_of_the_area_and_a_ratio_of_3_to_4_up_to_4_to_3():
    left, top, across, down = boxes(500, 375).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + across <= 500).all()
    assert (top + down <= 375).all()
    share = across * down / (500 * 375)
    assert 0.079 < share.min() < 0.085
    assert 0.9 < share.max() <= 1
    assert 0.74 < (across / down).min() < 0.77
    assert 1.31 < (across / down).max() < 1.345


def test_the_law_of_a_crop_is_the_published_one():
    """Below three quarters of a square every crop fits, so that area, ratio and place are independent draws there."""
    side = 20_000
    left, top, across, down = boxes(side, side).T
    share, ratio = across * down / side**2, across / down
    small = share < 0.75
    assert kstest(share[small], uniform(0.08, 0.67).cdf).pvalue > 1e-3
    assert kstest((left / (side - across))[small], uniform().cdf).pvalue > 1e-3
    assert kstest((top / (side - down))[small], uniform().cdf).pvalue > 1e-3

    def law(ratio):  # uniform in [3/4, 4/3], turned over half of the time
        lying = ((ratio - 3 / 4) / (4 / 3 - 3 / 4)).clip(0, 1)
        standing = ((4 / 3 - 1 / ratio) / (4 / 3 - 3 / 4)).clip(0, 1)
        return (lying + standing) / 2

    assert kstest(ratio[small], law).pvalue > 1e-3
    assert abs(np.corrcoef(share[small], ratio[small])[0, 1]) < 0.05


@pytest.mark.parametrize(("sides", "expected"), [((1000, 10), (495, 0, 10, 10)), ((9, 300), (0, 145, 9, 9))])
def test_where_no_crop_fits_the_middle_is_taken(sides, expected):
    assert (boxes(*sides, count=50) == expected).all()


@pytest.mark.parametrize("sides", SIZES[:6], ids=str)
def test_a_random_square_is_the_part_that_was_drawn(tmp_path, sides):
    """To a grey level; but for its outermost pixels, where the filter sees a little beyond the box."""
    file = save(tmp_path / "x.png", photo(1, *sides))
    for draws in randomness.uniform((10, 5), 7, torch.arange(10)).tolist():
        left, top, across, down = decoding.crop_box(*sides, draws)
        part = upright(file).crop((left, top, left + across, top + down)).resize((24, 24), Image.Resampling.BILINEAR)
        found = decoding.random_square(file, 24, draws, "").astype(int)
        assert np.abs(found - np.asarray(part))[2:-2, 2:-2].max() <= 1
        assert np.abs(found - np.asarray(part)).max() < 40


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch):
    file = save(tmp_path / "x.jpg", photo(2, 1600, 1200), quality=95)
    draft, shrunk = JpegImagePlugin.JpegImageFile.draft, []
    for draws in randomness.uniform((10, 5), 8, torch.arange(8)).tolist():
        with monkeypatch.context() as patched:
            patched.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: None)
            whole = decoding.random_square(file, 40, draws, "").astype(int)

        def noted(image, mode, size):
            width = image.size[0]
            found = draft(image, mode, size)
            shrunk.append(width / found[1][2])
            assert min(image.size[0] / size[0], image.size[1] / size[1]) >= 1, "too small to cut the square out of it"
            return found

        with monkeypatch.context() as patched:
            patched.setattr(JpegImagePlugin.JpegImageFile, "draft", noted)
            small = decoding.random_square(file, 40, draws, "").astype(int)
        assert np.abs(small - whole).mean() < 2
    assert max(shrunk) == 8


def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    odd = save(tmp_path / "odd.jpg", photo(3, 600, 240), exif=exif)
    plain = save(tmp_path / "plain.jpg", photo(3, 600, 240))
    for draws in np.random.default_rng(0).random((20, decoding.ATTEMPTS, decoding.DRAWS)).tolist():
        assert np.array_equal(*(decoding.random_square(file, 40, draws, "") for file in (odd, plain)))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_photo_that_lies_on_its_side_is_cut_upright(tmp_path, ending):
    lying = save(tmp_path / f"lying.{ending}", photo(3, 600, 240), exif=rotated())
    standing = save(tmp_path / "standing.png", upright(lying))
    assert upright(lying).size == (240, 600)
    assert np.array_equal(decoding.centre_square(lying, 40, 48, ""), decoding.centre_square(standing, 40, 48, ""))
    for draws in randomness.uniform((10, 5), 9, torch.arange(10)).tolist():
        one, other = (decoding.random_square(file, 40, draws, "").astype(int) for file in (lying, standing))
        assert np.abs(one - other).mean() < 2
        assert np.ptp(other) > 30


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_file_that_cannot_be_read_has_a_fault_and_is_named(tmp_path, ending):
    file = save(tmp_path / f"x.{ending}", photo(4, 300, 200))
    whole = file.read_bytes()
    assert decoding.fault(file) == ""
    draws = randomness.uniform((10, 5), 0, torch.tensor([0])).tolist()[0]
    for content in (b"", b"no image", whole[:30], whole[: len(whole) // 2], whole[:-100]):
        file.write_bytes(content)
        assert decoding.fault(file)
        for read in (
            lambda: decoding.centre_square(file, 40, 48, "do this"),
            lambda: decoding.random_square(file, 40, draws, "do this"),
        ):
            with pytest.raises(DataError, match=rf"{file} cannot be read as an image \(.+\); do this$"):
                read()
    file.unlink()
    assert decoding.fault(file) == "No such file or directory"
    with pytest.raises(DataError, match=r"\(No such file or directory\); do this$"):
        decoding.centre_square(file, 40, 48, "do this")
