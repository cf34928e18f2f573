"""Papers reproduced: one folder a paper, one file a table or figure, one row in `EXPERIMENTS`."""

from collections.abc import Callable

from bessemer.papers.bang import gradients, table1
from bessemer.papers.feature_purification import angles, features, laboratory, low_rank, perturbations, reconstruction
from bessemer.records import Result

LABORATORY = laboratory.NAME
EXPERIMENTS: dict[str, Callable[..., Result]] = {
    "bang-table1": table1.run,
    "bang-gradients": gradients.run,
    LABORATORY: laboratory.run,
    "purification-reconstruction": reconstruction.run,
    "purification-perturbations": perturbations.run,
    "purification-features": features.run,
    "purification-angles": angles.run,
    "purification-low-rank": low_rank.run,
}


def home(name: str, scale: str) -> str:
    """The folder of an experiment's networks: the figures of real networks share theirs."""
    shared = name.startswith("purification") and name != LABORATORY
    return f"purification-{scale}" if shared else f"{name}-{scale}"


__all__ = ["EXPERIMENTS", "LABORATORY", "home"]
