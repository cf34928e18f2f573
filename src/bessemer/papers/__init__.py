"""Papers reproduced: one folder a paper, one file a table or figure, one row in `EXPERIMENTS`."""

from collections.abc import Callable

from bessemer.papers.bang import gradients, table1
from bessemer.records import Result

EXPERIMENTS: dict[str, Callable[..., Result]] = {"bang-table1": table1.run, "bang-gradients": gradients.run}

__all__ = ["EXPERIMENTS"]
