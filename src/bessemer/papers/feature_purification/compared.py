"""The networks that the pictures compare, opened; and what stands beside their images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from bessemer import data, training
from bessemer.data import Dataset
from bessemer.papers.feature_purification import networks
from bessemer.training import Moment

CLEAN, OTHER = "clean", "clean-other"  # trained from another seed: its neurons have nothing to do with the others'
ROBUST = ("l2-0.5", "linf-8")


def opened(
    architecture: str,
    names: Iterable[str],
    scale: str,
    runs: Path,
    data_dir: Path | None,
    watch: Callable[[str], Callable[[Moment], None]],
) -> tuple[dict[str, nn.Module], Dataset]:
    """The networks of these names, trained where they are not yet, and the data they learned from."""
    device = networks.device(scale)
    models: dict[str, Any] = {
        name: training.load(networks.run(architecture, name, scale, runs, data_dir, watch), device) for name in names
    }
    source, settings = next(iter(models.values())).recipe.data
    return models, data.load(source, data_dir, **settings).to(device)


def caption(architecture: str, name: str) -> str:
    """What a network is called in a picture: `adversarially trained, L2 0.5`."""
    ball = networks.threat(architecture, name).replace(":", " ")
    return f"adversarially trained, {ball}" if ball else name
