"""Several processes at one evaluation (`torchrun`): who takes which batch, and how all come to know everything."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


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


def together() -> None:
    """Wait until every process has come here."""
    if place()[1] > 1:
        distributed.barrier()
