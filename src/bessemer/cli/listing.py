"""`bessemer list`: what there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bessemer.attacks import ATTACKS
from bessemer.errors import unknown
from bessemer.evaluation import SUITES
from bessemer.models import MODELS, PUBLISHED, Network
from bessemer.models.cost import cost
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
    `bessemer list models` also counts parameters and the multiply-adds of one
    image's forward pass (each is two floating-point operations): of each model
    as it is by default, and of published networks that other settings make.
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
    if what == "models":
        _print_costs()


def _rows(what: str) -> dict[str, str]:
    """Each name with the first paragraph of what it says of itself."""
    if what == "recipes":
        return {name: read_tables(path).get("about", "") for name, path in recipes().items()}
    return {name: (inspect.getdoc(kind) or "").split("\n\n")[0] for name, kind in _REGISTRIES[what].items()}


def _print_costs() -> None:
    """What each model costs with its defaults, and with the settings of further published networks."""
    rows: list[tuple[str, Callable[..., Network]]] = []
    for name, model in MODELS.items():
        rows.append((name, model))
        for settings in PUBLISHED.get(name, ()):
            written = ", ".join(f"{key}={value}" for key, value in settings.items())
            rows.append((f"  {written}", partial(model, **settings)))
    width = max(len(label) for label, _ in rows)
    console = Console(highlight=False)
    console.print(f"\n[bold]{'':{width}}  {'parameters':>11}  multiply-adds[/bold]")
    for label, make in rows:  # each as soon as it is there: the deepest networks take a moment
        found = cost(make)
        console.print(f"{label:{width}}  {found.parameters:11,}  {_short(found.multiply_adds):>13}", markup=False)


def _short(count: int) -> str:
    """A number of multiply-adds as the literature writes it."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"
