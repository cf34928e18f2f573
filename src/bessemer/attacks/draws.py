"""The best of n: what random attacks make of their draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from bessemer.attacks.attack import Images, Oracle


def best_of(draws: int, oracle: Oracle, images: Images, draw: Callable[[int, Int[Tensor, " k"]], Images]) -> Images:
    """For each image the first of its draws that succeeds, or else the last; `draw(number, rows)` makes them."""
    found = images.clone()
    rows = torch.arange(len(images), device=images.device)
    for number in range(draws):
        candidate = draw(number, rows)
        found[rows] = candidate
        rows = rows[~oracle.reached(candidate, oracle.logits(candidate, rows), rows)]
        if not len(rows):
            break
    return found
