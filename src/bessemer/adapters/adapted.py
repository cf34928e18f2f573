"""An attack of another library in the shape of Bessemer's: it proposes images, and Bessemer's judge weighs them.

What comes back is what the library found. Only rounding dust is clipped (`DUST`); an image that left its ball or the
box by more is returned as it is, and the judge refuses it. A minimal attack's image that reaches nothing gives way to
the original.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isclose
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bessemer import randomness
from bessemer.attacks import Attack, Goal, Oracle
from bessemer.attacks.attack import Images, Model, column
from bessemer.attacks.goal import Rows
from bessemer.errors import ImagesError, UsageError, unknown
from bessemer.threat import THREATS, Threat

DUST = 1e-6  # per pixel
STEPS = ("steps", "max_iter", "n_queries")  # what other libraries call them


class Judged(nn.Module):
    """The judged model as another library sees it: callable, counted and out of reach.

    It holds the model without registering it, so that a library that switches modes, clears gradients or moves what it
    was given touches an empty shell. forwards, backwards: rows of all batches that passed through.
    """

    def __init__(self, model: Model, images: Images, classes: int) -> None:
        super().__init__()
        self._model, self._like = (model,), images[:0]
        self.classes = classes
        self.forwards = self.backwards = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The logits, for images of any type and place."""
        rows = len(images)
        self.forwards += rows
        logits: Tensor = self._model[0](images.to(self._like))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._count_backward(rows))
        return logits

    def _count_backward(self, rows: int) -> None:
        self.backwards += rows


@dataclass(frozen=True)
class Foreign(ABC):
    """What Bessemer needs to know of one attack of one library."""

    attack: Any

    library: ClassVar[str]

    @property
    def name(self) -> str:
        """The library and the class."""
        return f"{self.library}.{type(self.attack).__name__}"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What it was built with."""

    @abstractmethod
    def ball(self) -> tuple[str | None, float | None]:
        """The norm and the radius it was built for; None where it does not say."""

    @abstractmethod
    def images(self, judged: Judged, images: Images, goal: Goal, threat: Threat | None, seed: int) -> Tensor:
        """What it finds against the judged model. The object the caller holds stays as it is."""

    def require(self, threat: Threat | None) -> None:
        """Refuse (`UsageError`) a threat other than the one it was built for."""
        norm, eps = self.ball()
        if threat is None:
            if eps is not None:
                example = f"{norm or 'Linf'}({eps:.6g})"
                raise UsageError(f"{self.name} searches a ball; say which: adapters.attack(…, {example})")
            return
        if norm not in (None, threat.norm):
            raise UsageError(f"{self.name} was built for {norm}, which does not fit the threat {threat}")
        if eps is not None and not isclose(eps, threat.eps, rel_tol=1e-6, abs_tol=1e-12):
            raise UsageError(
                f"{self.name} was built with a radius of {eps:.6g}, but the threat {threat} has {threat.eps:.6g}; "
                f"build it for that radius, in [0, 1] pixels"
            )

    def steps(self) -> int:
        """How many steps it is set to take; 1,000 where it does not say."""
        settings = self.settings()
        return next((settings[name] for name in STEPS if isinstance(settings.get(name), int)), 1000)

    def untargetable(self) -> UsageError:
        """The error where a target is given to an attack that takes none."""
        return UsageError(f"{self.name} does not take a target; attack without one, or choose another attack")

    def __repr__(self) -> str:
        settings = {name: _plain(value) for name, value in self.settings().items()}
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in settings.items())})"


def _plain(value: Any) -> str:
    """A setting, written so that it reads the same in every process: an object shows its class, not its address."""
    if value is None or isinstance(value, bool | int | float | str | np.number):
        return repr(value.item() if isinstance(value, np.number) else value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_plain(part) for part in value)}]"
    return type(value).__name__


@dataclass(frozen=True, repr=False)
class Adapted(Attack):
    """An attack of another library.

    Passes are counted by the rows of every batch the library sends through the model, and shared evenly among the
    images, the remainder falling to the first: exact where each call holds all images once, an average elsewhere.
    Gradients are not looked at (`Outcome.gradients` stays 0).

    Asked through another attack (`EightBit`, `EOT`, `BPDA`), it still searches the model itself.

    Its random numbers (the global generators of torch, NumPy and Python) start at `subseed(seed, 7)` for every batch:
    results repeat, but unlike those of Bessemer's own attacks they depend on how the images are split into batches.
    """

    foreign: Foreign

    def __post_init__(self) -> None:
        self.foreign.require(getattr(self, "threat", None))

    def __repr__(self) -> str:
        return f"adapters.attack({self.foreign}, {getattr(self, 'threat', getattr(self, 'norm', None))!r})"

    def passes(self, classes: int) -> tuple[int, int]:
        """A guess from its number of steps, for progress and budgets: how often the library asks is its own affair."""
        return self.foreign.steps() + 3, self.foreign.steps()

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """One call of the library, on the images that are still worth it.

        The model itself answers, also where the caller offers a cheaper stand-in: the library decides by its answers
        what to return.
        """
        logits = oracle.logits(images)
        rows = torch.arange(len(images), device=images.device)
        if until_success or self.kind == "minimal":
            rows = rows[~oracle.reached(images, logits)]
        if not len(rows):
            return images
        judged = Judged(oracle._model, images, logits.shape[1])
        threat: Threat | None = getattr(self, "threat", None)
        seed = randomness.subseed(seed, 7)
        with _repeatable(seed):
            found = self.foreign.images(judged, images[rows], goal.at(rows), threat, seed)
        oracle.count(_shared(judged.forwards, rows), _shared(judged.backwards, rows), rows)
        if not isinstance(found, Tensor) or found.shape != images[rows].shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ImagesError(f"{self.foreign.name} returned {shape} instead of {tuple(images[rows].shape)}")
        result = images.clone()
        result[rows] = self._kept(found.detach().to(images), images[rows], oracle, rows)
        return result

    @abstractmethod
    def _kept(self, found: Images, originals: Images, oracle: Oracle, rows: Rows) -> Images:
        """What is returned of what was found."""


@dataclass(frozen=True, repr=False)
class AdaptedBounded(Adapted):
    """One that searches a ball."""

    threat: Threat

    kind: ClassVar[str] = "bounded"

    def _kept(self, found: Images, originals: Images, oracle: Oracle, rows: Rows) -> Images:
        return _without_dust(found, self.threat.project(found, originals))


@dataclass(frozen=True, repr=False)
class AdaptedMinimal(Adapted):
    """One that looks for the nearest misclassified image, in a norm."""

    norm: str

    kind: ClassVar[str] = "minimal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in THREATS:
            raise unknown("norm", str(self.norm), THREATS)
        if self.foreign.ball()[0] not in (None, self.norm):
            raise UsageError(f"{self.foreign.name} was built for {self.foreign.ball()[0]}, not for {self.norm}")

    def _kept(self, found: Images, originals: Images, oracle: Oracle, rows: Rows) -> Images:
        found = _without_dust(found, found.clamp(0, 1))
        return torch.where(column(oracle.fooled(found, rows), found), found, originals)


def _shared(passes: int, rows: Tensor) -> Tensor:
    """Passes, shared evenly among images."""
    return passes // len(rows) + (torch.arange(len(rows), device=rows.device) < passes % len(rows)).long()


def _without_dust(found: Images, legal: Images) -> Images:
    """The legal images where they differ by rounding alone; what was found elsewhere (NaN included)."""
    dust = (legal - found).flatten(1).abs().amax(1) <= DUST
    return torch.where(column(dust, found), legal, found)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed the global random numbers of NumPy and Python, and give them back; torch's are `borrowed` already."""
    arrays, own = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(arrays)
        random.setstate(own)


def is_from(thing: object, library: str) -> bool:
    """Whether a thing, or a class it derives from, comes from a library."""
    return any(kind.__module__.partition(".")[0] == library for kind in type(thing).__mro__)
