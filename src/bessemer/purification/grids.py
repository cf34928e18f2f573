"""Images side by side, in blocks with a name for each row and column: the pictures of this room.

Every pixel of an image becomes a square of whole pixels on paper: nothing is interpolated, nothing resampled.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from bessemer.errors import ImagesError, UsageError
from bessemer.records import write_whole

DPI = 150
SPACE = 18  # pixels between blocks, and around everything
WIDTH = 1700  # pixels that a row of blocks may take
LARGEST = 12  # screen pixels to a pixel, along each side


def centred(signed: Float[Tensor, "n c h w"], within: float = 1.0) -> Float[Tensor, "n c h w"]:
    """Signed values as images in [0, 1]: zero is mid-grey, and each image's largest magnitude reaches black or white.

    within: the share of its values that need not be cut off; below 1, a few large ones do not leave the others pale.
    What is zero everywhere is all grey.
    """
    reach = signed.abs().flatten(1).float().quantile(within, dim=1).to(signed).view(-1, 1, 1, 1)
    return (0.5 + 0.5 * signed / reach.where(reach > 0, 1.0)).clamp(0, 1)


def tiled(images: Float[Tensor, "n c h w"], across: int, enlarged: int = 1) -> Float[Tensor, "height width c"]:
    """The images in rows of at most `across`, each pixel `enlarged` times as large, a white line between them.

    Raises `ImagesError` for images that are neither grey nor RGB.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ImagesError(f"only grey and RGB images can be shown, (N, 1 or 3, H, W), not {tuple(images.shape)}")
    across = max(1, min(across, len(images)))
    line = max(2, enlarged // 2)
    large = images.detach().clamp(0, 1).repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    framed = functional.pad(large, (0, line, 0, line), value=1.0)
    rows = math.ceil(len(images) / across)
    missing = framed.new_ones((rows * across - len(images), *framed.shape[1:]))
    _, channels, height, width = framed.shape
    grid = torch.cat([framed, missing]).view(rows, across, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2).reshape(rows * height, across * width, channels)[:-line, :-line]


def sheet(
    path: Path,
    blocks: Sequence[Sequence[Float[Tensor, "n c h w"]]],
    rows: Sequence[str],
    columns: Sequence[str],
    across: int = 8,
) -> None:
    """Write a PNG of blocks of images, `across` of them side by side in each block.

    blocks: row by row, images in [0, 1]; those of a column should be of one size. rows, columns: what stands to the
    left of each row and above each column; an empty text takes no room.
    Raises `ImagesError` for images that are neither grey nor RGB, `UsageError` where names and blocks do not fit.
    """
    if len(blocks) != len(rows) or any(len(row) != len(columns) for row in blocks):
        raise UsageError(f"{len(rows)} names of rows and {len(columns)} of columns do not fit the blocks given")
    widths = [sum(min(across, len(block)) * (block.shape[3] + 1) for block in row) for row in blocks]
    enlarged = min(LARGEST, max(1, WIDTH // max(widths)))
    grids = [[_rgb(tiled(block, across, enlarged)) for block in row] for row in blocks]
    high = [max(grid.shape[0] for grid in row) for row in grids]
    with matplotlib.style.context(["default", {"font.size": 9}]):
        left = max((_size(name)[0] for name in rows if name), default=0)
        titles = [_size(name) if name else (0, 0) for name in columns]
        top = max(height for _, height in titles)
        drawn = [max(row[place].shape[1] for row in grids) for place in range(len(columns))]
        wide = [max(title[0], block) for title, block in zip(titles, drawn, strict=True)]
        x0 = SPACE + (left + SPACE if left else 0)
        y0 = SPACE + (top + SPACE // 2 if top else 0)
        width = x0 + sum(wide) + SPACE * len(wide)
        height = y0 + sum(high) + SPACE * len(high)
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        FigureCanvasAgg(figure)
        at: dict[str, Any] = {"transform": None, "color": "#1f2328"}
        y = y0
        for name, row, tall in zip(rows, grids, high, strict=True):
            figure.text(x0 - SPACE, height - y - tall / 2, name, ha="right", va="center", **at)
            x = x0
            for title, grid, room, block in zip(columns, row, wide, drawn, strict=True):
                if y == y0:
                    figure.text(x + room / 2, height - y0 + SPACE // 2, title, ha="center", va="bottom", **at)
                figure.figimage(grid, x + (room - block) // 2, height - y - grid.shape[0], origin="upper")
                x += room + SPACE
            y += tall + SPACE
        picture = io.BytesIO()
        figure.savefig(picture, dpi=DPI, metadata={"Software": None})
    write_whole(path, picture.getvalue())


def _rgb(grid: Float[Tensor, "height width c"]) -> np.ndarray:
    return np.asarray((255 * grid).round().byte().expand(-1, -1, 3).cpu())


def _size(text: str) -> tuple[int, int]:
    """Width and height of some text on paper, in pixels."""
    figure = Figure(dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    extent = figure.text(0, 0, text).get_window_extent(canvas.get_renderer())
    return math.ceil(extent.width), math.ceil(extent.height)
