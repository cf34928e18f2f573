"""Papers reproduced: one folder a paper, one file a table or figure, one row in `EXPERIMENTS`."""

from collections.abc import Callable
from functools import partial

from bessemer.papers.at_scale import adv_prop, denoising, depth, mixture, pairing, ratio
from bessemer.papers.bang import beyond, figure1, gradients, grids, noise, tables
from bessemer.papers.feature_purification import angles, features, laboratory, low_rank, perturbations, reconstruction
from bessemer.records import Result

LABORATORY = laboratory.NAME
EXPERIMENTS: dict[str, Callable[..., Result]] = {
    "bang-table1": partial(tables.run, "lenet"),
    "bang-table2": partial(tables.run, "cifar-quick"),
    "bang-figure1": figure1.run,
    "bang-figure2": partial(grids.run, "lenet"),
    "bang-figure3": partial(noise.run, "lenet"),
    "bang-figure4": partial(grids.run, "cifar-quick"),
    "bang-figure5": partial(noise.run, "cifar-quick"),
    "bang-gradients": gradients.run,
    "bang-beyond": beyond.run,
    LABORATORY: laboratory.run,
    "purification-reconstruction": reconstruction.run,
    "purification-perturbations": perturbations.run,
    "purification-features": features.run,
    "purification-angles": angles.run,
    "purification-low-rank": low_rank.run,
    ratio.NAME: ratio.run,
    mixture.NAME: mixture.run,
    depth.NAME: depth.run,
    pairing.NAME: pairing.run,
    denoising.NAME: denoising.run,
    adv_prop.NAME: adv_prop.run,
}
_AT_SCALE = (ratio.NAME, mixture.NAME, depth.NAME, pairing.NAME, denoising.NAME, adv_prop.NAME)


def home(name: str, scale: str) -> str:
    """The folder of an experiment's networks, which those of one paper share."""
    if name.startswith("bang"):
        return "bang"
    if name in _AT_SCALE:
        return "at-scale"
    shared = name.startswith("purification") and name != LABORATORY
    return f"purification-{scale}" if shared else f"{name}-{scale}"


__all__ = ["EXPERIMENTS", "LABORATORY", "home"]
