"""`bessemer demo`: three networks, what each withstands, and which of the numbers to believe."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bessemer.cli.evaluate import evaluated, images_for
from bessemer.cli.options import Interrupted
from bessemer.cli.train import trained
from bessemer.records import Evaluation, RunRecord
from bessemer.report import report as write_report
from bessemer.threat import Threat
from bessemer.training import Recipe

RECIPES = {"regular": "digits", "bang": "bang-digits", "adversarial": "adversarial-digits"}
SUITES = ("quick", "bang")


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs and the page go.")] = Path("runs/demo"),
) -> None:
    """Train three small networks on real handwritten digits, attack them, and write a page.

    One is trained regularly, one with BANG, one adversarially. Takes about two
    minutes on two cores; no download. A second call does only what is missing.

    [bold]Example[/bold]
      bessemer demo --out runs/first
    """
    began = time.monotonic()
    folders = [out / name for name in RECIPES]
    for folder, name in zip(folders, RECIPES.values(), strict=True):
        recipe = Recipe.named(name)
        model, interrupted = trained(recipe, folder, resume=folder.exists())
        if interrupted:
            raise Interrupted(f"stopped and saved; go on with: {shlex.join(['bessemer', 'demo', '--out', str(out)])}")
        dataset, threat = images_for(model), recipe.evaluation.threat
        done = {each.suite for each in RunRecord.read(folder).evaluations if _answers(each, threat, len(dataset.test))}
        for suite in SUITES:
            if suite not in done:
                evaluated(model, dataset, suite, threat, folder.name).save(folder / "records")
    page = write_report(list(folders), out / "report.html")
    took = f"Done in {time.monotonic() - began:.0f} s."
    Console().print(f"{took} Open {page}", markup=False, highlight=False, soft_wrap=True)


def _answers(evaluation: Evaluation, threat: Threat | None, images: int) -> bool:
    """Whether an evaluation is one that the demo makes: of every test image, and not under another threat."""
    return len(evaluation) == images and evaluation.threat in ("", str(threat or ""))
