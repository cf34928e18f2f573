"""One page for an experiment: its sentences, each with a picture that shows it and claims that could refute it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bessemer.records import Claim, Result


@dataclass(frozen=True)
class Chapter:
    """A sentence, its picture (a PNG file, with what it shows in words), and claims that could refute the sentence."""

    sentence: str
    claims: list[Claim]
    picture: Path | None = None
    shows: str = ""

    @property
    def address(self) -> str:
        """The picture as part of a page."""
        assert self.picture is not None
        return "data:image/png;base64," + base64.b64encode(self.picture.read_bytes()).decode()


def experiment(result: Result, title: str, chapters: list[Chapter]) -> str:
    """The page as HTML: self-contained, no scripts, nothing fetched."""
    environment = Environment(
        loader=PackageLoader("bessemer", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    held = sum(claim.holds for claim in result.claims)
    return environment.get_template("experiment.html").render(
        title=title,
        result=result,
        chapters=chapters,
        held=held,
        provenance=json.dumps(result.provenance, indent=1, ensure_ascii=False),
    )
