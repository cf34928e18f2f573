"""Random numbers that belong to an image.

Each number is a function of (seed, image index, coordinate): a counter-based generator, so that splitting a batch,
reordering it or moving it to another device changes no draw, and no two steps of training share one. The mixing
function is SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(word: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit word."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _shift(words: Tensor, bits: int) -> Tensor:
    """A logical right shift: torch's own carries the sign bit along."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _shift(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ _shift(words, 31)


def subseed(seed: int, *labels: int) -> int:
    """A seed for one purpose, derived from a seed: `subseed(seed, epoch)` and `subseed(seed, step)` never meet."""
    word = seed & _WORD
    for label in labels:
        word = (word + _GOLDEN * (2 * label + 1)) & _WORD
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
        word ^= word >> 31
    return word >> 1  # fits torch.manual_seed


def _words(seed: int, index: Tensor, count: int, stream: int) -> Tensor:
    key = _mix(index.long() * _signed(_GOLDEN) + _signed(subseed(seed, stream)))
    coordinate = torch.arange(1, count + 1, device=index.device) * _signed(_GOLDEN)
    return _mix(key[:, None] + coordinate)


def uniform(
    shape: tuple[int, ...],
    seed: int,
    index: Int[Tensor, " n"],
    dtype: torch.dtype = torch.float32,
    stream: int = 0,
) -> Float[Tensor, "n ..."]:
    """Numbers in (0, 1) of shape (len(index), *shape), one row per image index; `stream` tells several draws apart."""
    words = _words(seed, index, math.prod(shape), stream)
    # 23 bits and a half: exact in float32, never 0, never 1
    return ((_shift(words, 41).to(torch.float32) + 0.5) * 2.0**-23).to(dtype).view(len(index), *shape)


def normal(
    shape: tuple[int, ...],
    seed: int,
    index: Int[Tensor, " n"],
    dtype: torch.dtype = torch.float32,
    stream: int = 0,
) -> Float[Tensor, "n ..."]:
    """Standard normal numbers of shape (len(index), *shape), by Box and Muller's transform."""
    radius = torch.sqrt(-2 * torch.log(uniform(shape, seed, index, stream=2 * stream + 1)))
    angle = 2 * math.pi * uniform(shape, seed, index, stream=2 * stream + 2)
    return (radius * torch.cos(angle)).to(dtype)


def integers(high: int, seed: int, index: Int[Tensor, " n"], stream: int = 0) -> Int[Tensor, " n"]:
    """One integer in 0 … high − 1 per image index."""
    return _shift(_words(seed, index, 1, stream)[:, 0], 16) % high
