"""Progress with time left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bessemer.evaluation import Stage
from bessemer.training import Moment


@contextmanager
def quiet_until_started(bars: Progress) -> Iterator[Progress]:
    """Nothing is shown, not even an empty line, before `start`."""
    try:
        yield bars
    finally:
        if bars.live.is_started:
            bars.stop()


def progress() -> AbstractContextManager[Progress]:
    """Room for bars on standard error."""
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    return quiet_until_started(bars)


def training_bar(bars: Progress, name: str) -> Callable[[Moment], None]:
    """A bar with the live loss and validation accuracy; returns what to call after each update."""
    task = bars.add_task(name, total=None, note="", visible=False)

    def show(moment: Moment) -> None:
        loss = "…" if math.isnan(moment.loss) else f"{moment.loss:.4f}"
        accuracy = "…" if math.isnan(moment.accuracy) else f"{100 * moment.accuracy:.2f} %"
        robust = "" if math.isnan(moment.robust) else f"  robust {100 * moment.robust:.2f} %"
        note = f"loss {loss}  accuracy {accuracy}{robust}"
        bars.start()
        bars.update(task, completed=moment.iteration, total=moment.iterations, note=note, visible=True)

    return show


def evaluation_bar(bars: Progress, name: str) -> Callable[[Stage], None]:
    """A bar over images that names the attack at work; returns what to call at each stage."""
    task = bars.add_task(name, total=None, note="", visible=False)

    def show(stage: Stage) -> None:
        standing = f"  standing {100 * stage.standing.value:.1f} %" if stage.standing.total else ""
        bars.start()
        note = f"{stage.attack}{standing}"
        bars.update(task, completed=stage.done, total=stage.total or None, note=note, visible=True)

    return show
