"""How floats are computed with: denormals flushed where they cost, no shortcuts where verdicts are made."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_OMP_PAUSE_HARD = 2  # from omp.h, OpenMP 5.0


@contextmanager
def flushed() -> Iterator[None]:
    """Denormals are zero inside, in torch's worker threads too; also a decorator. Before and after, all is as it was.

    Processors can be many times slower with denormals, and BANG's gradients reach them.
    """
    already = sys.float_info.min / 2 == 0
    _flush(True)
    try:
        yield
    finally:
        _flush(already)


def _flush(on: bool) -> None:
    """Switch flushing, and let go of worker threads that were started with another setting.

    A worker takes the setting over from the thread that starts it and keeps it for life: half of a run's arithmetic
    would depend on what the process did before. OpenMP starts new ones with the next parallel operation.
    """
    torch.set_flush_denormal(on)
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        pause = getattr(ctypes.CDLL(str(library)), "omp_pause_resource_all", None)
        if pause is not None:
            pause(_OMP_PAUSE_HARD)


@contextmanager
def exact() -> Iterator[None]:
    """Full float32 and the same result each time; also a decorator.

    On NVIDIA GPUs convolutions otherwise round their inputs to 10 bits (TF32) and may sum in any order; a caller's
    autocast does not reach inside either.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    cudnn = torch.backends.cudnn
    flags = cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False)
    with flags, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        matmul.allow_tf32 = False
        try:
            yield
        finally:
            matmul.allow_tf32 = before
