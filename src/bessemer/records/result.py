"""What an experiment found: claims that could have failed, and numbers beside the published ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bessemer.records.files import write_whole


@dataclass(frozen=True)
class Claim:
    """A sentence, whether it held here, and the figures: ours and the published one (both as text)."""

    text: str
    holds: bool
    value: str
    published: str = ""


@dataclass(frozen=True)
class Result:
    """The outcome of one table or figure at one scale.

    table: what there is to be read line by line, the columns' titles first; empty where a picture says it all.
    """

    name: str
    scale: str
    claims: list[Claim]
    numbers: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    table: list[list[str]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write `NAME-SCALE.json`, to be read by people too; returns the path. Raises `FileError`."""
        path = folder / f"{self.name}-{self.scale}.json"
        write_whole(path, json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        return path
