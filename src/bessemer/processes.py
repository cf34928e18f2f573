"""Several processes at one piece of work (`torchrun`): who does what, and how all come to know everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from bessemer.errors import BessemerError

T = TypeVar("T")
# a batch of a large model may take an hour, and who is through waits for the others; torchrun ends all if one fails
PATIENCE = timedelta(days=30)
_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # what it tells its processes


@contextmanager
def under_torchrun(device: str) -> Iterator[str]:
    """The group of all processes, where `torchrun` has started several; yields the device of this one.

    `cuda` becomes the GPU of the process's own number on its machine.
    """
    if not os.environ.keys() >= _TORCHRUN or distributed.is_initialized():
        yield device
        return
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) on its own."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gathered(own: list[T]) -> list[T]:
    """Everybody's items, those of the first process first."""
    world = place()[1]
    if world == 1:
        return own
    everybody: list[list[T]] = [[] for _ in range(world)]
    distributed.all_gather_object(everybody, own)
    return [item for items in everybody for item in items]


def agreed(make: Callable[[], T]) -> T:
    """What the first process makes, for all of them; where it cannot be made, its error is everybody's."""
    rank, world = place()
    if world == 1:
        return make()
    made: list[T | Exception | None] = [None]
    if rank == 0:
        try:
            made = [make()]
        except BessemerError as problem:
            made = [problem]
    distributed.broadcast_object_list(made)
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]  # type: ignore[return-value]


def total(own: Tensor) -> Tensor:
    """The sum over all processes of equally shaped tensors; theirs are left as they are."""
    if place()[1] == 1:
        return own
    everything = own.clone()
    distributed.all_reduce(everything)
    return everything
