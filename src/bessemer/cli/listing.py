"""`bessemer list`: what there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bessemer.attacks import ATTACKS
from bessemer.errors import unknown
from bessemer.evaluation import SUITES
from bessemer.models import MODELS
from bessemer.training import METHODS, recipes
from bessemer.training.recipe import read_tables

_WHAT = ("recipes", "models", "methods", "attacks", "suites")


def listing(what: Annotated[str, typer.Argument(help=", ".join(_WHAT))]) -> None:
    """List recipes, models, methods, attacks or suites, with a sentence each.

    bessemer list recipes
    """
    registries: dict[str, Mapping[str, Callable[..., Any]]] = {
        "models": MODELS,
        "methods": METHODS,
        "attacks": ATTACKS,
        "suites": SUITES,
    }
    if what not in _WHAT:
        raise unknown("list", what, _WHAT)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    if what == "recipes":
        rows = {name: read_tables(path).get("about", "") for name, path in recipes().items()}
    else:
        rows = {name: (inspect.getdoc(kind) or "").split("\n\n")[0] for name, kind in registries[what].items()}
    for name, about in rows.items():
        table.add_row(f"[bold]{name}[/bold]", about.replace("\n", " ").replace("[", r"\["))
    Console().print(table)
