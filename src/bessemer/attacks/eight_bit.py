"""Eight bits: adversarial images that survive being saved.

A PNG holds whole grey levels. Rounding an adversarial image after the attack may undo it, and rounding to nearest may
leave the ball. Here the search asks about nothing but images that can be stored:

    stored(x) = x_0 + trunc(255 (x − x_0)) / 255,    x_0 the original

Every pixel is rounded towards the original, which makes no change larger in any norm. The gradient at stored(x) moves
x, the point that is not rounded (straight-through: Bengio, Léonard and Courville, "Estimating or propagating gradients
through stochastic neurons", 2013), so that small steps add up. `parts.GreyLevels` rounds at every step of a gradient
attack instead; this wraps any attack with a ball.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bessemer.attacks.attack import Images, Oracle, column
from bessemer.attacks.goal import Goal, Rows
from bessemer.attacks.wrapped import View, Wrapped
from bessemer.errors import ImagesError, UsageError
from bessemer.threat import Threat

# In grey levels: what float32 leaves of a whole level is still one. As a radius, 4e-7.
NEARLY = 1e-4


@dataclass(frozen=True)
class EightBit(Wrapped):
    """The attack inside, confined to images in whole grey levels k/255.

    They stay in the ball to 1e-6, also where its radius is no whole number of grey levels. Raises `UsageError` for an
    attack without a ball in [0, 1], and `ImagesError` where the originals are not in whole grey levels themselves.
    """

    def __post_init__(self) -> None:
        if self.threat is None or self.threat.box != (0.0, 1.0):
            raise UsageError(f"EightBit needs an attack with a threat in [0, 1], found {self.attack!r}")

    def remarks(self, classes: int) -> list[str]:
        """A ball may be too small to hold another 8-bit image."""
        alone = [] if self._ball.eps * 255 + NEARLY >= 1 else ["no pixel can move by a whole grey level in this ball"]
        return super().remarks(classes) + alone

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """The attack inside, which sees stored images alone; what it found, stored."""
        grey = (255 * images).round()
        if (255 * images - grey).abs().max() > 0.01:
            raise ImagesError("EightBit needs originals in whole grey levels; round them: (255 * images).round() / 255")
        stored = _Stored(oracle, grey, self._ball)
        return stored.at(self.attack.search(stored, images, goal, seed, index, until_success))

    @property
    def _ball(self) -> Threat:
        assert self.threat is not None
        return self.threat


class _Stored(View):
    """Every question is about the image as an 8-bit file would hold it."""

    def __init__(self, oracle: Oracle, grey: Tensor, threat: Threat) -> None:
        super().__init__(oracle)
        self._grey, self._threat = grey, threat

    def at(self, images: Images, rows: Rows = None) -> Images:
        """The images, rounded towards the originals."""
        grey = self._grey if rows is None else self._grey[rows]
        moved = 255 * images - grey
        nearest = moved.round()
        levels = torch.where((moved - nearest).abs() < NEARLY, nearest, moved.trunc())
        # many pixels that are nearly a level higher may leave an L2 or L1 ball together
        outside = self._threat.size(levels / 255) > self._threat.eps + 5e-7
        levels = torch.where(column(outside, moved), moved.trunc(), levels)
        return (grey + levels).clamp(0, 255) / 255

    def _seen(self, images: Images, rows: Rows) -> Images:
        return self.at(images, rows)
