"""Plots as inline SVG that belong to the page: its colours, its font, light or dark.

Matplotlib draws in colours that stand for names (`#000001` is the ink); afterwards each becomes the page's own, so one
drawing serves both themes. No text of a user enters matplotlib, which would read `$` as mathematics: names stand in
the page's legend. Identifiers are unique on the page, and nothing in a figure depends on the time.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bessemer.records import Curve, RunRecord, Share
from bessemer.report import words

INK, RULE = "#000001", "#000002"
COLOURS = 6
DASHES = ["solid", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (9, 3))]
# the marker's name to matplotlib, and its outline in a square of -5 … 5 for the legend
MARKERS = [
    ("o", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z"),
    ("s", "M-3.6,-3.6h7.2v7.2h-7.2z"),
    ("^", "M0,-4.4L4.4,3.8H-4.4z"),
    ("D", "M0,-4.8L4.8,0L0,4.8L-4.8,0z"),
    ("v", "M0,4.4L4.4,-3.8H-4.4z"),
    ("P", "M-1.5,-4.2h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7z"),
    ("X", "M-4,-2L-2,-4L0,-2L2,-4L4,-2L2,0L4,2L2,4L0,2L-2,4L-4,2L-2,0z"),
]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bessemer",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


@dataclass(frozen=True)
class Look:
    """How the run at one place of the page is drawn; colour, dashes and marker, as colour alone would not do."""

    place: int

    @property
    def colour(self) -> str:
        """The page's name for the colour."""
        return f"var(--run-{self.place % COLOURS + 1})"

    @property
    def stand_in(self) -> str:
        """The colour while matplotlib draws."""
        return f"#0000{16 + self.place % COLOURS:02x}"

    @property
    def dashes(self) -> str | tuple[float, tuple[float, ...]]:
        """For matplotlib."""
        return DASHES[self.place % len(DASHES)]  # type: ignore[return-value]

    @property
    def dash_array(self) -> str:
        """For SVG."""
        return "none" if isinstance(self.dashes, str) else " ".join(f"{length:g}" for length in self.dashes[1])

    @property
    def marker(self) -> str:
        """For matplotlib."""
        return MARKERS[self.place % len(MARKERS)][0]

    @property
    def outline(self) -> str:
        """The marker for SVG."""
        return MARKERS[self.place % len(MARKERS)][1]


def robust_accuracy(curves: list[tuple[int, Curve]], threat: str, name: str, title: str) -> Markup:
    """Robust accuracy over the radius, one line a run with its Wilson band; `name` makes the identifiers unique."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _empty("radius in [0, 1] pixels", "robust accuracy (%)")
        largest = 0.0
        for place, curve in curves:
            points = sorted(zip(curve.eps, curve.robust, strict=True))
            eps = [radius for radius, _ in points]
            shares = [Share(robust, curve.total) for _, robust in points]
            look = Look(place)
            low, high = (np.array([100 * share.interval[side] for share in shares]) for side in (0, 1))
            axes.fill_between(eps, low, high, color=look.stand_in, alpha=0.16, linewidth=0)
            _line(axes, look, eps, [100 * share.value for share in shares], marked=True)
            largest = max(largest, *eps) if eps else largest
        axes.set_ylim(-2, 102)
        axes.set_yticks([0, 25, 50, 75, 100])
        if _crowded([eps for _, curve in curves for eps in curve.eps]):
            smallest = min(eps for _, curve in curves for eps in curve.eps if eps > 0)
            axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(_round(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        norm = curves[0][1].norm
        suite = words.ball(threat)
        if suite is not None and suite[0] == norm and 0 < suite[1] <= largest:
            axes.axvline(suite[1], color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        if norm == "Linf":
            _grey_levels(axes)
        return _inline(figure, name, title, _described(curves))


def _described(curves: list[tuple[int, Curve]]) -> str:
    """The plot in a sentence, for those who cannot see it."""
    radii = [eps for _, curve in curves for eps in curve.eps]
    if not radii:
        return "No radius was measured."
    shares = [robust / curve.total for _, curve in curves for robust in curve.robust if curve.total]
    span = f" Robust accuracy lies between {min(shares):.1%} and {max(shares):.1%}." if shares else ""
    lines = "One line" if len(curves) == 1 else f"{len(curves)} lines"
    return (
        f"{lines}, radius from {min(radii):.3g} to {max(radii):.3g}.{span} The figures are in the table that follows."
    )


def _crowded(radii: list[float]) -> bool:
    """Whether most radii would sit in the lowest tenth of a linear axis: then they were meant for a logarithmic one."""
    positive = [eps for eps in radii if eps > 0]
    return len(positive) > 2 and float(np.median(positive)) < max(positive) / 10


def _grey_levels(axes: Axes) -> None:
    top = axes.secondary_xaxis("top", functions=(_to_grey, _from_grey))
    top.set_xlabel("grey levels (n/255)", labelpad=6)
    top.spines["top"].set_visible(False)
    if axes.get_xscale() == "linear":
        top.xaxis.set_major_locator(_round(6))
    else:
        top.set_xticks([255 * tick for tick in axes.get_xticks()])
        top.xaxis.set_minor_locator(NullLocator())
    top.xaxis.set_major_formatter(FuncFormatter(lambda grey, _: f"{grey:.3g}"))


def _to_grey(eps: npt.ArrayLike) -> npt.ArrayLike:
    return 255 * np.asarray(eps)


def _from_grey(grey: npt.ArrayLike) -> npt.ArrayLike:
    return np.asarray(grey) / 255


def loss(runs: list[RunRecord], name: str, title: str) -> Markup | None:
    """Training loss (thin) and validation loss (marked) over the iterations, on a logarithmic axis."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _empty("iteration", "loss")
        drawn = []
        for place, run in enumerate(runs):
            iterations, values = _series(run, "loss", positive=True)
            axes.plot(iterations, values, color=Look(place).stand_in, linestyle=Look(place).dashes, linewidth=1)
            drawn += values
            iterations, values = _series(run, "validation_loss", positive=True)
            _line(axes, Look(place), iterations, values, marked=True)
            drawn += values
        if not drawn:
            return None
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        if max(drawn) / min(drawn) < 300:  # a tick a decade would be too few
            axes.set_yticks(_round_steps(min(drawn), max(drawn)))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_major_locator(_round(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda iteration, _: f"{iteration:,.0f}"))
        text = f"{len(runs)} runs; loss between {min(drawn):.3g} and {max(drawn):.3g}, on a logarithmic axis."
        return _inline(figure, name, title, text)


def validation_accuracy(runs: list[RunRecord], name: str, title: str) -> Markup | None:
    """Validation accuracy over the iterations."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _empty("iteration", "validation accuracy (%)")
        drawn = []
        for place, run in enumerate(runs):
            iterations, values = _series(run, "validation_accuracy")
            values = [100 * value for value in values]
            _line(axes, Look(place), iterations, values, marked=True)
            drawn += values
        if not drawn:
            return None
        axes.yaxis.set_major_locator(_round(5))
        axes.xaxis.set_major_locator(_round(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda iteration, _: f"{iteration:,.0f}"))
        text = f"{len(runs)} runs; validation accuracy between {min(drawn):.1f} % and {max(drawn):.1f} %."
        return _inline(figure, name, title, text)


def _series(run: RunRecord, key: str, positive: bool = False) -> tuple[list[float], list[float]]:
    """Iterations and values of one metric; what has no place on the axis is left out."""
    points = [(line["iteration"], line[key]) for line in run.metrics if key in line]
    points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not positive)]
    return [x for x, _ in points], [y for _, y in points]


def _round_steps(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [step for step in steps if low / 1.2 <= step <= high * 1.2]


def _empty(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(400 / 72, 285 / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _line(axes: Axes, look: Look, x: list[float], y: list[float], marked: bool) -> None:
    every = max(1, len(x) // 12)  # markers tell lines apart; one at every point would bury them
    marker = look.marker if marked else None
    axes.plot(x, y, color=look.stand_in, linestyle=look.dashes, marker=marker, markevery=every, markeredgewidth=0)


def _round(most: int) -> MaxNLocator:
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}".replace("e-0", "e-")


def _inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an `svg` element: the page's colours and font, a title, a description, identifiers under `name`."""
    drawing = io.BytesIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(drawing.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet would reach the whole page
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    text = ElementTree.tostring(root, encoding="unicode")
    referenced = set(re.findall(r'(?:url\(#|xlink:href="#)([\w.-]+)', text))
    for element in root.iter():
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
        else:
            element.set("id", f"{name}-{element.get('id')}")
        for attribute, value in element.attrib.items():
            element.set(attribute, _repainted(re.sub(r"url\(#", f"url(#{name}-", value)))
        if (target := element.get(f"{{{XLINK}}}href")) is not None:
            del element.attrib[f"{{{XLINK}}}href"]
            element.set("href", f"#{name}-{target[1:]}")
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-text")
    for place, (tag, content) in enumerate([("title", title), ("desc", description)]):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'text'}"})
        element.text = content
        root.insert(place, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _repainted(value: str) -> str:
    """An attribute with the page's colours in place of the stand-ins, and without matplotlib's font."""
    value = value.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    for place in range(COLOURS):
        value = value.replace(Look(place).stand_in, Look(place).colour)
    value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
    return re.sub(r"font-family: [^;]*;?", "", value)
