"""Progress with time left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bessemer.evaluation import Stage
from bessemer.training import Moment


def _bar(*columns: TextColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def training_progress(name: str) -> Iterator[Callable[[Moment], None]]:
    """A bar with the live loss and validation accuracy; yields what to call after each update."""
    with _bar(TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}")) as progress:
        task = progress.add_task(name, total=None, loss="…", accuracy="…", visible=False)

        def show(moment: Moment) -> None:
            loss = "…" if math.isnan(moment.loss) else f"{moment.loss:.4f}"
            accuracy = "…" if math.isnan(moment.accuracy) else f"{100 * moment.accuracy:.2f} %"
            progress.update(
                task,
                completed=moment.iteration,
                total=moment.iterations,
                loss=loss,
                accuracy=accuracy,
                visible=True,
            )

        yield show


@contextmanager
def evaluation_progress(name: str) -> Iterator[Callable[[Stage], None]]:
    """A bar over images that names the attack at work; yields what to call at each stage."""
    with _bar(TextColumn("{task.fields[attack]}")) as progress:
        task = progress.add_task(name, total=None, attack="")

        def show(stage: Stage) -> None:
            progress.update(task, completed=stage.done, total=stage.total or None, attack=stage.attack)

        yield show
