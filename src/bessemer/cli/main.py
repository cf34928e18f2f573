"""`bessemer`: commands in, exit codes out: 0 done, 1 failed, 2 wrong use, 130 interrupted."""

from __future__ import annotations

import sys

import torch
import typer
from rich.console import Console

from bessemer.cli import data, demo, evaluate, listing, report, reproduce, train
from bessemer.errors import BessemerError

app = typer.Typer(
    name="bessemer",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Start with [bold]bessemer demo[/bold]: three networks, two minutes, one page.",
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(reproduce.reproduce)
app.add_typer(data.app, name="data")
app.command("list")(listing.listing)


@app.callback()
def _about() -> None:
    """Train image classifiers that hold under perturbation, attack them, and measure honestly what is left."""


def main() -> None:
    """Run the command line; what Bessemer refuses becomes one sentence and an exit code."""
    torch.set_flush_denormal(True)  # before torch starts its threads, see bessemer.denormals
    try:
        app()
    except BessemerError as problem:
        # plain text: a path or an array in a message is no markup
        Console(stderr=True).print(
            f"bessemer: {problem}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("bessemer: interrupted", style="bold red")
        sys.exit(130)
