"""`bessemer list`: what there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bessemer.attacks import ATTACKS
from bessemer.errors import unknown
from bessemer.evaluation import SUITES
from bessemer.models import MODELS
from bessemer.training import METHODS, recipes
from bessemer.training.recipe import read_tables

_REGISTRIES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "models": MODELS,
    "methods": METHODS,
    "attacks": ATTACKS,
    "suites": SUITES,
}
_WHAT = ("recipes", *_REGISTRIES)


def listing(
    what: Annotated[str | None, typer.Argument(metavar="WHAT", help=f"{', '.join(_WHAT)}; all if left out.")] = None,
) -> None:
    """List recipes, models, methods, attacks or suites, with a sentence each.

    [bold]Examples[/bold]
      bessemer list recipes
      bessemer list

    Recipes are what `bessemer train` takes; the others are what recipes name.
    """
    if what is not None and what not in _WHAT:
        raise unknown("list", what, _WHAT)
    table = Table.grid(padding=(0, 2, 0, 0))
    for one in _WHAT if what is None else [what]:
        if what is None:
            table.add_row(f"[bold]{one}[/bold]")
        for name, about in _rows(one).items():
            table.add_row(f"  {name}" if what is None else name, escape(about.replace("\n", " ")))
    Console().print(table, highlight=False)


def _rows(what: str) -> dict[str, str]:
    """Each name with the first paragraph of what it says of itself."""
    if what == "recipes":
        return {name: read_tables(path).get("about", "") for name, path in recipes().items()}
    return {name: (inspect.getdoc(kind) or "").split("\n\n")[0] for name, kind in _REGISTRIES[what].items()}
