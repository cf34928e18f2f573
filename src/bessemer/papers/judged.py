"""One suite asked of one network, once: what was found stays in the run's folder, and is read from then on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn

from bessemer.data import Dataset
from bessemer.errors import ModelError
from bessemer.evaluation import Stage, Suite, evaluate
from bessemer.records import Evaluation, file_name


def judged(
    model: nn.Module,
    dataset: Dataset,
    suite: Suite,
    folder: Path,
    *,
    samples: int | None,
    watch: Callable[[Stage], None],
    fast: bool = False,
) -> Evaluation:
    """What a suite finds on the first `samples` test images (all of them: None), kept in the run's `records`.

    The model is to be the one whose training is over; a record of other attacks under the suite's name does not count.

    fast: attacks search in bfloat16, and each success is confirmed in float32; where the network says too different
    things in the two, it is asked in float32 alone. What was stopped goes on where it was.
    """
    records, images = folder / "records", min(samples or len(dataset.test), len(dataset.test))
    threats = (getattr(attack, "threat", None) for attack in suite.attacks.values())
    threat = next((str(threat) for threat in threats if threat is not None), "")
    modes = (True, False) if fast else (False,)
    stems = {mode: file_name(suite.name, threat, dataset.name, images, fast=mode) for mode in modes}
    for stem in stems.values():
        path = records / f"{stem}.json"
        if path.exists() and _asks((kept := Evaluation.read(path)), suite):
            return kept

    def asked(mode: bool) -> Evaluation:
        journal = records / f"{stems[mode]}.partial"
        found = evaluate(
            model, dataset, suite, fast=mode, samples=samples, name=folder.name, resume=journal, watch=watch
        )
        path = found.save(records)
        shutil.rmtree(journal)
        return Evaluation.read(path)

    if fast:
        try:
            return asked(True)
        except ModelError:  # what it says in bfloat16 is too far from what it says itself
            pass
    return asked(False)


def _asks(found: Evaluation, suite: Suite) -> bool:
    """Whether a record is of the suite's own attacks."""
    return {rows.name: rows.attack for rows in found.attacks} == {
        name: repr(attack) for name, attack in suite.attacks.items()
    }
