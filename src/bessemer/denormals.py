"""Flushing denormal floats to zero: processors are many times slower with them, and BANG's gradients reach them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed() -> Iterator[None]:
    """Denormals are zero inside; also a decorator. Before and after, the calling thread is as it was.

    torch's worker threads take the setting over from the thread that starts them, with the first parallel operation of
    the process; the command line therefore switches it on before anything else.
    """
    already = sys.float_info.min / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)
