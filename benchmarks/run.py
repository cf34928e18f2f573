"""Every benchmark, as ratios in one run: `make bench`. Writes results/benchmarks.json.

`python benchmarks/run.py pgd` measures one file's rows again and leaves the others as they are.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

import bang_step
import pgd
import training_loop
from bessemer.allocation import keep_freed_memory
from bessemer.records import provenance, write_whole

MEASURES = {"bang_step": bang_step.measure, "training_loop": training_loop.measure, "pgd": pgd.measure}
STARTS = {"bang_step": "BANG step", "training_loop": "training loop", "pgd": "PGD-"}  # of the names of their rows


def main(only: list[str]) -> None:
    """Measure, print, write."""
    torch.set_flush_denormal(True)
    keep_freed_memory()  # as the command line does
    began = time.monotonic()
    path = Path(__file__).parents[1] / "results" / "benchmarks.json"
    before = json.loads(path.read_text()) if only else {"ratios": {}, "provenance": {}}
    measured = {name: MEASURES[name]() for name in only or MEASURES}
    rows = {row: figures for figures_of in measured.values() for row, figures in figures_of.items()}
    for name, row in rows.items():
        low, high = row["quartiles"]
        times = f"{row['seconds']:.3f} s / {row['base_seconds']:.3f} s"
        print(f"{row['ratio']:6.3f}  [{low:.3f}, {high:.3f}]  {name}  ({times})")
    facts = provenance(threads=torch.get_num_threads(), seconds=round(time.monotonic() - began, 1))
    kept = {
        name: row for name, row in before["ratios"].items() if not name.startswith(tuple(STARTS[one] for one in only))
    }
    found = {
        "ratios": {**kept, **rows},
        "provenance": {**before["provenance"], **dict.fromkeys(measured, facts)},
    }
    write_whole(path, json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
