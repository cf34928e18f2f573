"""How floats are computed with: denormals flushed where they cost, no shortcuts where verdicts are made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed() -> Iterator[None]:
    """Denormals are zero inside; also a decorator. Before and after, the calling thread is as it was.

    Processors are many times slower with denormals, and BANG's gradients reach them. torch's worker threads take the
    setting over from the thread that starts them, with the first parallel operation of the process; the command line
    therefore switches it on before anything else.
    """
    already = sys.float_info.min / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


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
