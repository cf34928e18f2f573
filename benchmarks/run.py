"""Every benchmark, as ratios in one run: `make bench`. Writes results/benchmarks.json."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

import bang_step
import pgd
import training_loop
from bessemer.allocation import keep_freed_memory
from bessemer.records import provenance, write_whole


def main() -> None:
    """Measure, print, write."""
    torch.set_flush_denormal(True)
    keep_freed_memory()  # as the command line does
    began = time.monotonic()
    rows = {**bang_step.measure(), **training_loop.measure(), **pgd.measure()}
    for name, row in rows.items():
        low, high = row["quartiles"]
        times = f"{row['seconds']:.3f} s / {row['base_seconds']:.3f} s"
        print(f"{row['ratio']:6.3f}  [{low:.3f}, {high:.3f}]  {name}  ({times})")
    facts = provenance(threads=torch.get_num_threads(), seconds=round(time.monotonic() - began, 1))
    text = json.dumps({"ratios": rows, "provenance": facts}, indent=1, ensure_ascii=False)
    write_whole(Path(__file__).parents[1] / "results" / "benchmarks.json", text.encode() + b"\n")


if __name__ == "__main__":
    main()
