"""Batches of images, decoded by worker processes while the last ones are trained on.

A request goes to one worker whole, and what comes back comes in the order of the requests: how many workers there are
changes no batch. They are PyTorch's DataLoader workers; a batch lies in shared memory, page-locked where it goes on to
a GPU.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bessemer.errors import DataError

Decode = Callable[[Tensor, int], Tensor]  # (places, seed) -> images
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h: send this signal when the parent is gone
AHEAD = 2  # batches that each worker decodes before they are needed


def spare_cores() -> int:
    """The cores that this process may decode on; under `torchrun`, its share of them."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def decoded_ahead(
    decode: Decode, asked: Iterable[tuple[Int[Tensor, " k"], int]], workers: int, page_locked: bool = False
) -> Iterator[UInt8[Tensor, "k c h w"]]:
    """What `decode` makes of one request after the other; with no workers, in this process and when it is asked for.

    Raises the `DataError` of a worker, and one that says what happened where a worker died.
    """
    if not workers:
        yield from (decode(*request) for request in asked)
        return
    loader = DataLoader(
        _Decoder(decode),
        batch_size=None,
        sampler=((index.numpy(), seed) for index, seed in asked),
        num_workers=workers,
        prefetch_factor=AHEAD,
        pin_memory=page_locked,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        # it draws a number for the workers, which may not come from the generator that dropout draws from
        generator=torch.Generator(),
        multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
    )
    try:
        with warnings.catch_warnings(), _signals_held_back():
            # from Python 3.12 on, a fork beside threads is warned of; these processes use no lock of theirs
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            coming = iter(loader)
        for found in coming:
            if isinstance(found, str):
                raise DataError(found)
            yield found
    except (RuntimeError, ConnectionError, EOFError) as problem:  # as it dies in its work, or in handing it over
        why = (str(problem) or type(problem).__name__).splitlines()[0].strip()
        raise DataError(
            f"decoding images in {workers} processes failed: {why}; if one was "
            "killed, the memory or /dev/shm was full: set data.workers lower, and go on with --resume"
        ) from problem


class _Decoder(Dataset[Tensor | str]):
    """Answers requests in a worker; a refusal crosses over as its sentence, without the worker's traceback."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode

    def __getitem__(self, request: tuple[npt.NDArray[np.int64], int]) -> Tensor | str:
        index, seed = request
        try:
            return self.decode(torch.from_numpy(index), seed)
        except DataError as problem:
            return str(problem)


def _as_it_is(found: Any) -> Any:
    return found


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes begun in here meet no signal before `_begin` has said what becomes of it; this one later."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(number: int) -> None:
    # a worker holds its parent's memory and locks: one that outlived a killed run might keep it from being resumed
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # Ctrl-C reaches every process of a terminal, a scheduler's SIGTERM every process of a job: the first one ends the
    # others, maybe after a checkpoint
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        Thread(target=_end_when_told, daemon=True).start()  # SIGTERM stays held back from everything else
    elif sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF blocks, once a worker and file


def _end_when_told() -> None:
    """End this process at its parent's SIGTERM, and at nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
