"""Plots as inline SVG that belong to the page: its colours, its font, light or dark.

Matplotlib draws in colours that stand for names (`#000001` is the ink); afterwards each becomes the page's own, so one
drawing serves both themes. No text of a user enters matplotlib, which would read `$` as mathematics: names stand in
the page's legend. Identifiers are unique on the page, and nothing in a figure depends on the time.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bessemer.records import RunRecord, Share

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
    """How a line is drawn: its colour stands for the run at one place of the page, its dashes and marker too.

    Where several lines belong to one run, `style` gives each its own dashes and marker, and the one that unites them
    is `bold`: a thick line without marks.
    """

    place: int
    style: int | None = None
    bold: bool = False

    @property
    def _style(self) -> int:
        return self.place if self.style is None else self.style

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
        return "solid" if self.bold else DASHES[self._style % len(DASHES)]  # type: ignore[return-value]

    @property
    def dash_array(self) -> str:
        """For SVG."""
        return "none" if isinstance(self.dashes, str) else " ".join(f"{length:g}" for length in self.dashes[1])

    @property
    def marker(self) -> str:
        """For matplotlib."""
        return "" if self.bold else MARKERS[self._style % len(MARKERS)][0]

    @property
    def outline(self) -> str:
        """The marker for SVG."""
        return "" if self.bold else MARKERS[self._style % len(MARKERS)][1]

    @property
    def width(self) -> float:
        """Of the line, in points."""
        return 3.4 if self.bold else 1.8 if self.style is None else 1.3


ONE_TWO_FIVE = [float(f"{digit}e{power}") for power in range(-6, 5) for digit in (1, 2, 5)]
DOUBLED = [2.0**power for power in range(-4, 9)]  # grey levels


@dataclass(frozen=True)
class Line:
    """Robust accuracy over something: `shares[i]` of the images hold at `at[i]`.

    band: with its Wilson interval. stairs: constant from one value to the next. median: marked where it is finite.
    """

    look: Look
    at: list[float]
    shares: list[Share]
    band: bool = False
    stairs: bool = False
    median: float = math.nan


@dataclass(frozen=True)
class Axis:
    """What robust accuracy is drawn over, in `unit`; `marked` is the suite's own value, `end` where the axis ends."""

    label: str
    unit: str = ""
    marked: float = math.nan
    end: float = math.nan
    logarithmic: bool = False


def accuracy_over(lines: list[Line], axis: Axis, name: str, title: str) -> Markup:
    """Robust accuracy over a radius, a distance or a number of steps; `name` makes the identifiers unique."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty(axis.label, "robust accuracy (%)")
        for line in lines:
            _accuracy(axes, line)
        axes.set_ylim(-2, 102)
        axes.set_yticks([0, 25, 50, 75, 100])
        values = [value for line in lines for value in line.at]
        if axis.logarithmic:
            axes.set_xscale("log")
            axes.set_xticks(sorted(set(values)))
            axes.xaxis.set_minor_locator(NullLocator())
        elif _crowded(values):
            least = min(value for value in values if value > 0)
            axes.set_xscale("symlog", linthresh=least, linscale=0.5)
            # matplotlib's own ticks of this scale run below 0 and into one another
            axes.set_xlim(0, 1.05 * max(values))
            axes.set_xticks([0, *(tick for tick in ONE_TWO_FIVE if least <= tick <= max(values))])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(_round(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands if axis.logarithmic else _plain))
        if not math.isnan(axis.end):
            axes.set_xlim(-0.02 * axis.end, axis.end)
        if 0 < axis.marked <= max(values, default=0):
            axes.axvline(axis.marked, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        if axis.unit == "Linf":
            _grey_levels(axes)
        return inline(figure, name, title, _described(lines, axis))


def _accuracy(axes: Axes, line: Line) -> None:
    points = sorted(zip(line.at, line.shares, strict=True), key=lambda point: point[0])
    at, shares = [value for value, _ in points], [share for _, share in points]
    kind = "steps-post" if line.stairs else "default"
    if line.band:
        low, high = (np.array([100 * share.interval[side] for share in shares]) for side in (0, 1))
        step = "post" if line.stairs else None
        axes.fill_between(at, low, high, color=line.look.stand_in, alpha=0.16, linewidth=0, step=step)  # type: ignore[arg-type]
    _line(axes, line.look, at, [100 * share.value for share in shares], marked=True, drawstyle=kind)
    if math.isfinite(line.median):
        axes.plot([line.median] * 2, [-2, 50], color=line.look.stand_in, linewidth=1, linestyle=line.look.dashes)


def _described(lines: list[Line], axis: Axis) -> str:
    """The plot in a sentence, for those who cannot see it."""
    values = [value for line in lines for value in line.at]
    if not values:
        return f"No {axis.label.split(' in ')[0]} was measured."
    shares = [share.value for line in lines for share in line.shares if share.total]
    span = f" Robust accuracy lies between {min(shares):.1%} and {max(shares):.1%}." if shares else ""
    drawn = "One line" if len(lines) == 1 else f"{len(lines)} lines"
    return (
        f"{drawn}, {axis.label.split(' in ')[0]} from {min(values):.3g} to {max(values):.3g}.{span} "
        "The figures are in the table that follows."
    )


def _crowded(radii: list[float]) -> bool:
    """Whether most radii would sit in the lowest tenth of a linear axis: then they were meant for a logarithmic one."""
    positive = [eps for eps in radii if eps > 0]
    return len(positive) > 2 and float(np.median(positive)) < max(positive) / 10


def _grey_levels(axes: Axes) -> None:
    if axes.get_xscale() == "linear":
        top: Any = axes.secondary_xaxis("top", functions=(_to_grey, _from_grey))
        top.xaxis.set_major_locator(_round(6))
        top.xaxis.set_major_formatter(FuncFormatter(lambda grey, _: f"{grey:.3g}"))
    else:  # where a secondary axis would be linear all the same
        top, least, most = axes.twiny(), float(axes.get_xticks()[1]), axes.get_xlim()[1]
        top.set_xscale("symlog", linthresh=axes.xaxis.get_transform().linthresh, linscale=0.5)  # type: ignore[attr-defined]
        top.set_xlim(axes.get_xlim())
        top.set_xticks([0, *(level / 255 for level in DOUBLED if least <= level / 255 <= most)])
        top.xaxis.set_minor_locator(NullLocator())
        top.xaxis.set_major_formatter(FuncFormatter(lambda eps, _: f"{255 * eps:.3g}"))
    top.set_xlabel("grey levels (n/255)", labelpad=6)
    top.spines["top"].set_visible(False)


def _to_grey(eps: npt.ArrayLike) -> npt.ArrayLike:
    return 255 * np.asarray(eps)


def _from_grey(grey: npt.ArrayLike) -> npt.ArrayLike:
    return np.asarray(grey) / 255


def loss(runs: list[RunRecord], name: str, title: str) -> Markup | None:
    """Training loss (thin) and validation loss (marked) over the iterations, on a logarithmic axis."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty("iteration", "loss")
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
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        text = f"{len(runs)} runs; loss between {min(drawn):.3g} and {max(drawn):.3g}, on a logarithmic axis."
        return inline(figure, name, title, text)


def validation_accuracy(runs: list[RunRecord], name: str, title: str) -> Markup | None:
    """Validation accuracy over the iterations (marked); under the recipe's attack, where it has one (thin)."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty("iteration", "validation accuracy (%)")
        drawn = []
        for place, run in enumerate(runs):
            iterations, values = _series(run, "validation_accuracy")
            values = [100 * value for value in values]
            _line(axes, Look(place), iterations, values, marked=True)
            drawn += values
            iterations, values = _series(run, "validation_robust_accuracy")
            values = [100 * value for value in values]
            axes.plot(iterations, values, color=Look(place).stand_in, linestyle=Look(place).dashes, linewidth=1)
            drawn += values
        if not drawn:
            return None
        axes.yaxis.set_major_locator(_round(5))
        axes.xaxis.set_major_locator(_round(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        text = f"{len(runs)} runs; validation accuracy between {min(drawn):.1f} % and {max(drawn):.1f} %."
        return inline(figure, name, title, text)


@dataclass(frozen=True)
class Course:
    """A number between 0 and 1 over the iterations: `values[i]` at `at[i]`, between the two edges `band[i]` if any."""

    look: Look
    at: list[float]
    values: list[float]
    band: list[tuple[float, float]] = field(default_factory=list)


def over_iterations(courses: list[Course], label: str, name: str, title: str) -> Markup:
    """What moves between 0 and 1 as training goes on; `label` says what it is."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = empty("iteration", label)
        for course in courses:
            if course.band:
                low, high = zip(*course.band, strict=True)
                axes.fill_between(course.at, low, high, color=course.look.stand_in, alpha=0.16, linewidth=0)
            _line(axes, course.look, course.at, course.values, marked=True)
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.xaxis.set_major_locator(_round(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        last = [course.values[-1] for course in courses]
        drawn = "One line" if len(courses) == 1 else f"{len(courses)} lines"
        ends = f"{min(last):.3f}" if len(last) == 1 else f"between {min(last):.3f} and {max(last):.3f}"
        text = (
            f"{drawn}, iterations {min(course.at[0] for course in courses):,.0f} to "
            f"{max(course.at[-1] for course in courses):,.0f}, at whose end {label} is {ends}. "
            "The figures are in the table that follows."
        )
        return inline(figure, name, title, text)


def _series(run: RunRecord, key: str, positive: bool = False) -> tuple[list[float], list[float]]:
    """Iterations and values of one metric; what has no place on the axis is left out."""
    points = [(line["iteration"], line[key]) for line in run.metrics if key in line]
    points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not positive)]
    return [x for x, _ in points], [y for _, y in points]


def _round_steps(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [step for step in steps if low / 1.2 <= step <= high * 1.2]


def empty(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, of the size that all figures of the page have."""
    figure = Figure(figsize=(400 / 72, 285 / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _line(axes: Axes, look: Look, x: list[float], y: list[float], marked: bool, drawstyle: str = "default") -> None:
    axes.plot(
        x,
        y,
        color=look.stand_in,
        linestyle=look.dashes,
        linewidth=look.width,
        drawstyle=drawstyle,
        marker=(look.marker or None) if marked else None,
        markevery=max(1, len(x) // 12),  # markers tell lines apart; one at every point would bury them
        markeredgewidth=0,
    )


def _round(most: int) -> MaxNLocator:
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}".replace("e-0", "e-")


def inline(figure: Figure, name: str, title: str, description: str) -> Markup:
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
