"""First-layer filters, and the grids they are shown in."""

import pytest
import torch
from matplotlib import image as png
from torch import nn

from bessemer.errors import ImagesError, ModelError, UsageError
from bessemer.models import CifarQuick, LeNet
from bessemer.purification.filters import filters, first_layer
from bessemer.purification.grids import centred, sheet, tiled


class Unordered(nn.Module):
    """Its first layer is registered last."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.block = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))

    def forward(self, images):
        return self.head(self.block(images).mean((2, 3)))


def test_the_first_layer_is_the_one_a_pass_comes_to_first():
    model = Unordered()
    assert first_layer(model, (3, 8, 8)) == "block.1"
    assert torch.equal(filters(model, (3, 8, 8)), model.block[1].weight)
    assert model.training
    assert model.block[0].num_batches_tracked == 0
    assert not model.head._forward_pre_hooks


def test_models_of_ours_say_what_they_take():
    assert filters(LeNet()).shape == (20, 1, 5, 5)
    assert filters(CifarQuick()).shape == (32, 3, 5, 5)


def test_a_linear_layer_has_filters_as_large_as_the_image():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 7))
    found = filters(model, (3, 4, 5))
    assert found.shape == (7, 3, 4, 5)
    images = torch.rand(2, 3, 4, 5)
    by_hand = torch.einsum("nchw,fchw->nf", images, found) + model[1].bias
    torch.testing.assert_close(by_hand, model(images))


def test_what_has_no_filters_is_refused():
    with pytest.raises(UsageError, match="no filters to show"):
        filters(nn.Flatten(), (1, 2, 2))
    with pytest.raises(UsageError, match="does not look at the pixels"):
        filters(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1)), (3, 4, 4))
    with pytest.raises(UsageError, match="does not look at the pixels"):
        filters(nn.Conv2d(4, 4, 1, groups=2), (4, 4, 4))
    with pytest.raises(UsageError, match="give their shape"):
        filters(nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelError, match=r"not in a function"):
        filters(lambda images: images, (1, 2, 2))


def test_zero_is_mid_grey_and_the_largest_reaches_the_rim():
    signed = torch.stack([torch.tensor([[[-4.0, 0.0, 2.0]]]), torch.zeros(1, 1, 3)])
    assert centred(signed).tolist() == [[[[0.0, 0.5, 0.75]]], [[[0.5, 0.5, 0.5]]]]
    assert centred(signed[:1], within=0.5).tolist() == [[[[0.0, 0.5, 1.0]]]]


def test_tiles_lie_where_they_should():
    images = torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 2, 2) / 4
    grid = tiled(images, across=2, enlarged=3)
    assert grid.shape == (2 * 6 + 2, 2 * 6 + 2, 1)
    assert (grid[:6, :6] == 0).all()
    assert (grid[:6, 8:] == 0.25).all()
    assert (grid[8:, :6] == 0.5).all()
    assert (grid[6:8] == 1).all()
    assert (grid[8:, 8:] == 1).all()


def test_tiles_keep_every_pixel():
    image = torch.rand(1, 3, 4, 5)
    assert torch.equal(tiled(image, across=8, enlarged=2)[::2, ::2].permute(2, 0, 1), image[0])


def test_a_sheet_shows_each_pixel_as_a_square(tmp_path):
    torch.manual_seed(0)
    clean, robust = torch.rand(6, 3, 5, 5), torch.rand(6, 1, 5, 5)
    sheet(tmp_path / "sheet.png", [[clean, robust]], ["conv1"], ["clean", "robust"], across=3)
    drawn = torch.from_numpy(png.imread(tmp_path / "sheet.png")[:, :, :3].copy())
    for block in (clean, robust):
        expected = (255 * tiled(block, 3, 12)).round().expand(-1, -1, 3) / 255
        high, wide = expected.shape[:2]
        windows = drawn.unfold(0, high, 1).unfold(1, wide, 1)  # every place where the block could lie
        corners = (windows[..., 0, 0] - expected[0, 0]).abs().amax(2) < 1e-3
        found = [windows[int(y), int(x)].permute(1, 2, 0) for y, x in corners.nonzero()]
        assert any(torch.allclose(one, expected, atol=1e-3) for one in found)
    assert (drawn[0] == 1).all()


def test_sheets_that_cannot_be_drawn_are_refused(tmp_path):
    with pytest.raises(UsageError, match="do not fit the blocks"):
        sheet(tmp_path / "sheet.png", [[torch.rand(1, 1, 2, 2)]], ["one", "two"], ["clean"])
    with pytest.raises(ImagesError, match="grey and RGB"):
        sheet(tmp_path / "sheet.png", [[torch.rand(1, 2, 2, 2)]], [""], [""])
    assert not list(tmp_path.iterdir())
