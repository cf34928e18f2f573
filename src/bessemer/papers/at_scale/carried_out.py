"""An at-scale reproduction from its networks to its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bessemer.errors import unknown
from bessemer.evaluation import Stage
from bessemer.papers.at_scale import networks
from bessemer.papers.at_scale.networks import SCALES, Networks, Scale, Work
from bessemer.papers.at_scale.published import Printed
from bessemer.records import Claim, Result, provenance
from bessemer.training import Moment


def carried_out(
    name: str,
    wanted: Mapping[str, Mapping[str, int]],
    published: Mapping[str, Printed],
    claims: Callable[[Networks, Scale], list[Claim]],
    picture: Callable[[Networks, Scale, Path], None],
    scale: str,
    runs: Path,
    data_dir: Path | None = None,
    watch_training: Callable[[str], Callable[[Moment], None]] = lambda name: lambda moment: None,
    watch_evaluation: Callable[[str], Callable[[Stage], None]] = lambda name: lambda stage: None,
    *,
    climb: bool = True,
) -> Result:
    """Train, attack and compare; networks and evaluations that are in `runs` already are not made again.

    wanted: at each scale, how many seeds of each network. climb: whether the long attack is made. A picture is left in
    `runs`. watch_training, watch_evaluation: given a network's name, what to call as its training or evaluation goes
    on. Raises `UsageError` for an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    began = time.monotonic()
    work = Work(SCALES[scale], runs, data_dir, watch_training, watch_evaluation)
    found = networks.found(work, wanted[scale], climb)
    picture(found, work.scale, runs / f"{name}-{scale}.png")
    facts = provenance(
        seeds=dict(wanted[scale]),
        iterations=work.scale.iterations,
        seconds=round(time.monotonic() - began, 1),
        device=work.device,
        threads=torch.get_num_threads(),
    )
    return Result(
        name,
        scale,
        claims(found, work.scale),
        networks.numbers(found, work.scale, published),
        facts,
        networks.table(found, work.scale, published),
    )
