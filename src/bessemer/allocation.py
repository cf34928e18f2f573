"""Keeping freed memory in the process.

glibc gives large freed blocks back to the system, and the next training step waits for the same pages again.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's parameters, from malloc.h
_LARGEST = 32 << 20  # glibc admits no more


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed blocks of up to 32 MB for reuse; returns whether it could be asked.

    It holds for the whole process, so the command line asks for it and a library call never does.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        return bool(library.mallopt(_TRIM_THRESHOLD, 1 << 30)) and bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST))
    except (OSError, AttributeError):  # another C library
        return False
