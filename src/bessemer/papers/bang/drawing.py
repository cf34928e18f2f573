"""How BANG's figures are drawn: their style, and surfaces over a grid as filled contours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import distance_transform_edt

REGULAR, BALANCED, OTHER = "#00798c", "#d1495b", "#30343f"
LEVEL = "#2a9d3a"  # the green of the paper's lines
Grid = NDArray[np.float64]


@contextmanager
def sheet(path: Path, width: float, height: float, grid: bool = True) -> Iterator[Figure]:
    """A figure that is written to a path in the end; sizes in inches."""
    settings = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": grid}
    with matplotlib.style.context(["default", {**settings, "grid.color": "#dddddd", "axes.axisbelow": True}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=150, metadata={"Software": None})


def surface(
    axes: Axes,
    across: Sequence[float],
    up: Sequence[float],
    values: Grid,
    *,
    level: float | None = None,
    colours: str = "viridis",
    limits: tuple[float, float] | None = None,
    points: bool = True,
) -> None:
    """Values (up, across) as interpolated filled contours with their scale; a cross where there is none (NaN).

    level: of the regularly trained network, drawn as a green line where the surface crosses it, and on the scale.
    limits: of the scale, where they are not the values' own. points: whether the measured ones are marked.
    """
    degree = min(len(across), len(up)) - 1
    missing = np.isnan(values)
    if missing.any():  # the surface goes on as at the nearest point
        near = distance_transform_edt(missing, return_distances=False, return_indices=True)
        values = values[tuple(near)]
    low, high = limits or (float(values.min()), float(values.max()))
    span = max(high - low, 1e-9)
    fine_across, fine_up = np.linspace(across[0], across[-1], 120), np.linspace(up[0], up[-1], 120)
    spline = RectBivariateSpline(up, across, values, kx=min(2, degree), ky=min(2, degree))
    # a spline overshoots; nothing lies beyond what was measured
    fine = spline(fine_up, fine_across).clip(values.min(), values.max())
    drawn = axes.contourf(
        fine_across, fine_up, fine, levels=np.linspace(low, low + span, 21), cmap=colours, extend="both"
    )
    scale = axes.figure.colorbar(drawn, ax=axes, format="%.3g", ticks=np.linspace(low, low + span, 5))
    if level is not None:
        axes.contour(fine_across, fine_up, fine, levels=[level], colors=LEVEL, linewidths=2)
        if low <= level <= low + span:
            scale.ax.axhline(level, color=LEVEL, linewidth=2)
    if points:
        x, y = np.meshgrid(across, up)
        marks = axes.plot(x[~missing], y[~missing], ".", color="white", markersize=3, alpha=0.8, clip_on=False)
        marks += axes.plot(x[missing], y[missing], "x", color=OTHER, markersize=6, clip_on=False)
        for mark in marks:  # half of one on the edge takes no room of its own
            mark.set_in_layout(False)
