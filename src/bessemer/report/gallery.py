"""The attacks as pictures: the image, the change magnified, the image that fooled the model (or did not).

The change is shown around middle grey and multiplied so that its largest move just reaches black or white; the factor
stands beside it, since a change of one grey level and one of a hundred would look alike.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from bessemer.records import Evaluation, Exhibit
from bessemer.report.comparison import Comparison, Entry, doubts

# in CSS pixels; two fit beside each other on a phone, and it is a whole multiple of 8, 14, 16, 28 and 56
LONGEST_SIDE = 112


@dataclass(frozen=True)
class Picture:
    """A picture ready for the page, at a whole multiple of its pixels where it is small."""

    address: str
    text: str
    width: int
    height: int
    small: bool


@dataclass(frozen=True)
class Outcome:
    """What one attack did to one image under one run."""

    place: int
    name: str
    change: Picture
    factor: str
    adversarial: Picture
    verdict: str
    sentence: str
    distance: str
    doubted: bool


@dataclass(frozen=True)
class Showing:
    """One image under one attack, with every run that has it."""

    index: int
    label: str
    original: Picture
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Gallery:
    """The images of one attack; `open` where it is the one to look at first."""

    attack: str
    conditions: str
    showings: list[Showing]
    open: bool = False


def galleries(comparisons: list[Comparison]) -> list[Gallery]:
    """A gallery per comparison and attack; the one in which most images were turned is open."""
    found = [
        Gallery(attack, comparison.title, shown)
        for comparison in comparisons
        for attack, shown in showings(comparison).items()
    ]
    most = max(found, key=_turned, default=None)
    return [replace(gallery, open=gallery is most) for gallery in found]


def _turned(gallery: Gallery) -> int:
    return sum(outcome.verdict == "turned" for showing in gallery.showings for outcome in showing.outcomes)


def showings(comparison: Comparison) -> dict[str, list[Showing]]:
    """Per attack, each image of the galleries with all runs that show it side by side."""
    found: dict[str, dict[tuple[int, bytes], list[tuple[Entry, Exhibit]]]] = {}
    for entry in comparison.entries:
        for exhibit in entry.evaluation.gallery:
            # an index alone is not enough: two runs may have read different files
            image = (exhibit.index, np.ascontiguousarray(exhibit.original).tobytes())
            found.setdefault(exhibit.attack, {}).setdefault(image, []).append((entry, exhibit))
    return {attack: [_showing(shown) for shown in images.values()] for attack, images in found.items()}


def _showing(shown: list[tuple[Entry, Exhibit]]) -> Showing:
    entry, exhibit = shown[0]
    label = class_name(entry.evaluation, exhibit.label)
    return Showing(
        exhibit.index,
        label,
        picture(exhibit.original, f"Original image {exhibit.index}, of class {label}"),
        [_outcome(entry, exhibit) for entry, exhibit in shown],
    )


def _outcome(entry: Entry, exhibit: Exhibit) -> Outcome:
    before = class_name(entry.evaluation, exhibit.prediction)
    after = class_name(entry.evaluation, exhibit.adversarial_prediction)
    if exhibit.prediction != exhibit.label:
        verdict, sentence = "wrong before", f"{before} before, {after} after"
    elif exhibit.adversarial_prediction != exhibit.label:
        verdict, sentence = "turned", f"{before} before, {after} after"
    else:
        verdict, sentence = "held", f"still {after}"
    change, factor = magnified(exhibit)
    what = f"under {exhibit.attack} against {entry.name}"
    stated = f"change ×{factor:.3g}" if factor else "no change"
    return Outcome(
        entry.place,
        entry.name,
        picture(change, f"Change of image {exhibit.index} {what}, {'magnified' if factor else 'none'}"),
        stated,
        picture(exhibit.adversarial, f"Image {exhibit.index} {what}: {verdict}, {sentence}"),
        verdict,
        sentence,
        f"Linf {255 * exhibit.linf:.1f} grey levels, L2 {exhibit.l2:.2f}",
        bool(doubts(entry.evaluation, exhibit.attack)),
    )


def magnified(exhibit: Exhibit) -> tuple[npt.NDArray[np.float64], float]:
    """The change around middle grey and its factor; 0 where nothing changed."""
    change = exhibit.adversarial.astype(np.float64) - exhibit.original
    largest = float(np.abs(change).max(initial=0.0))
    factor = 0.5 / largest if largest > 0 else 0.0
    return 0.5 + factor * change, factor


def class_name(evaluation: Evaluation, number: int) -> str:
    """The class's name; its number where the evaluation names none."""
    return evaluation.classes[number] if 0 <= number < len(evaluation.classes) else str(number)


def shrunk(pixels: npt.NDArray[np.floating], side: int) -> npt.NDArray[np.floating]:
    """Pixels (C, H, W) at no more than twice the size at which they are shown: means of squares of them."""
    every = math.ceil(max(pixels.shape[1:]) / (2 * side))
    if every == 1:
        return pixels
    channels, height, width = (pixels.shape[0], *(length // every for length in pixels.shape[1:]))
    squares = pixels[:, : height * every, : width * every].reshape(channels, height, every, width, every)
    means: npt.NDArray[np.floating] = squares.mean((2, 4))
    return means


def picture(pixels: npt.NDArray[np.floating], text: str, side: int = LONGEST_SIDE) -> Picture:
    """Pixels (C, H, W) in [0, 1] as a PNG in the page itself."""
    grey_levels = np.rint(255 * np.nan_to_num(np.asarray(pixels, np.float64)).clip(0, 1)).astype(np.uint8)
    channels, height, width = grey_levels.shape
    if channels == 3:
        image = Image.fromarray(np.ascontiguousarray(grey_levels.transpose(1, 2, 0)))
    else:  # one channel, or several that are no colours: their mean
        image = Image.fromarray(np.rint(grey_levels.mean(0)).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    scale = side // max(height, width)
    if scale >= 1:
        return Picture(address, text, width * scale, height * scale, small=True)
    less = side / max(height, width)
    return Picture(address, text, max(1, round(width * less)), max(1, round(height * less)), small=False)
