"""How the at-scale figures are drawn: accuracy over the attack's steps, and robust against clean accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from bessemer.papers.at_scale import networks
from bessemer.papers.at_scale.compared import Estimate, share
from bessemer.papers.at_scale.networks import Networks, Scale, after, right
from bessemer.papers.at_scale.published import Printed, number

COLOURS = ("#00798c", "#d1495b", "#edae49", "#66a182", "#2e4057", "#8d6a9f", "#c969a6", "#b07d62", "#7fb7e6")
PAPER = "#9a9a9a"
Look = Mapping[str, tuple[str, str]]  # by a network's name: its colour and what it is called, in all panels


def look(found: Networks, scale: Scale, **other: str) -> Look:
    """How the networks of a picture look. other: titles in place of a network's own."""
    names = dict(zip(found, COLOURS[: len(found)], strict=True))
    return {name: (colour, other.get(name, networks.words(name, scale))) for name, colour in names.items()}


def curves(axes: Axes, found: Networks, steps: Sequence[int], published: Mapping[str, Printed], own: Look) -> None:
    """Robust accuracy over PGD's steps, a line per network with its interval; printed curves in grey, dashed."""
    for name, seeds in found.items():
        line(axes, steps, [share(after(seeds, count)) for count in steps], *own[name])
    markers = iter("osd^v<>")
    for name in found:
        printed = {int(count): number(value) for count, value in published.get(name, {}).items() if count != "clean"}
        if len(printed) > 2:
            label, values = f"published: {own[name][1]}", list(printed.values())
            axes.plot(list(printed), values, f"--{next(markers)}", color=PAPER, markersize=4, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("PGD steps")
    axes.set_ylabel("right under attack (%)")
    # room above the curves for a legend of so many lines
    axes.set_ylim(0, axes.get_ylim()[1] / (1 - 0.047 * len(axes.lines)))
    axes.legend(fontsize=7, frameon=False, loc="upper right")


def line(axes: Axes, across: Sequence[float], estimates: Sequence[Estimate], colour: str, label: str) -> None:
    """Estimates as a line with their intervals around it, in %."""
    axes.plot(across, [100 * one.value for one in estimates], "-o", color=colour, markersize=4, label=label)
    low, high = ([100 * getattr(one, end) for one in estimates] for end in ("low", "high"))
    axes.fill_between(across, low, high, color=colour, alpha=0.15, linewidth=0)


def trade_off(axes: Axes, found: Networks, longest: int, own: Look) -> None:
    """Clean accuracy across, accuracy under the longest attack upwards; a dot with two intervals per network."""
    for name, seeds in found.items():
        across, up = share(right(seeds)), share(after(seeds, longest))
        spans = [[[100 * (one.value - one.low)], [100 * (one.high - one.value)]] for one in (across, up)]
        place = ([100 * across.value], [100 * up.value])
        axes.errorbar(*place, xerr=spans[0], yerr=spans[1], fmt="o", color=own[name][0], label=own[name][1])
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel(f"right under PGD-{longest} (%)")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def bars(axes: Axes, found: Networks, own: Look) -> None:
    """Clean accuracy as a dot with its interval, a row a network."""
    for place, (name, seeds) in enumerate(found.items()):
        one, colour = share(right(seeds)), own[name][0]
        axes.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=2)
        axes.plot([100 * one.value], [place], "o", color=colour)
        axes.text(100 * one.value, place - 0.15, own[name][1], fontsize=8, ha="center")
    axes.set_yticks([])
    axes.set_ylim(len(found) - 0.5, -0.6)
    axes.set_xlabel("clean accuracy (%)")
