"""`bessemer`: commands in, exit codes out: 0 done, 1 failed, 2 wrong use, 130 interrupted."""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from bessemer.allocation import keep_freed_memory
from bessemer.cli import data, demo, evaluate, listing, purify, report, reproduce, sweep, train
from bessemer.cli.options import Interrupted
from bessemer.errors import BessemerError


class _Commands(TyperGroup):
    """Commands of which Ctrl-C is answered with a sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; what was written before is whole") from None


app = typer.Typer(
    name="bessemer",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]bessemer demo[/bold]: three networks, two minutes, one page.",
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(sweep.sweep)
app.command()(evaluate.evaluate)
app.command()(purify.purify)
app.command()(report.report)
app.command()(reproduce.reproduce)
app.command("list")(listing.listing)
app.add_typer(data.app, name="data")


@app.callback()
def _about() -> None:
    """Train image classifiers that hold under perturbation, attack them, and measure honestly what is left."""


def main() -> None:
    """Run the command line; what Bessemer refuses becomes one sentence and an exit code."""
    keep_freed_memory()
    try:
        app()
    except BessemerError as problem:
        _leave(str(problem), problem.exit_code)
    except OSError as problem:  # of a place that no command expected to be touched, standard output included
        _leave(f"{problem.filename or 'standard output'}: {problem.strerror or problem}", 1)


def _leave(sentence: str, exit_code: int) -> None:
    # plain text: a path or an array in a message is no markup
    Console(stderr=True).print(f"bessemer: {sentence}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(exit_code)
