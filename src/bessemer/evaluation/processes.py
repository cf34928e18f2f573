"""Several processes at one evaluation (`torchrun`): who takes which batch, and how all come to know everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import distributed

from bessemer.errors import BessemerError

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
