"""`bessemer demo`: three networks, what each withstands, and which of the numbers to believe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bessemer.cli.evaluate import evaluated, images_for
from bessemer.cli.train import trained
from bessemer.report import report as write_report
from bessemer.training import Recipe

RECIPES = {"regular": "digits", "bang": "bang-digits", "adversarial": "adversarial-digits"}
SUITES = ("quick", "bang")


def demo(
    out: Annotated[Path, typer.Option(help="Where the runs and the page go.")] = Path("runs/demo"),
) -> None:
    """Train three small networks on real handwritten digits, attack them, and write a page.

    One is trained regularly, one with BANG, one adversarially. Takes about two minutes on two cores; no download.
    A second call does only what is missing.
    """
    began = time.monotonic()
    console = Console()
    folders = [out / name for name in RECIPES]
    for folder, name in zip(folders, RECIPES.values(), strict=True):
        recipe = Recipe.named(name)
        model, interrupted = trained(recipe, folder, resume=folder.exists())
        if interrupted:
            console.print("Stopped and saved. Go on with: bessemer demo", markup=False)
            raise typer.Exit(130)
        for suite in SUITES:
            if not (folder / "records" / f"{suite}.json").exists():
                evaluated(model, images_for(model), suite, recipe.evaluation.threat, folder)
    page = write_report(list(folders), out / "report.html")
    console.print(f"Done in {time.monotonic() - began:.0f} s. Open {page}", markup=False, soft_wrap=True)
