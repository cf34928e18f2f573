"""What Bessemer refuses, and how it says so.

Every message says what was seen, what was expected and what to do next, in one sentence with the caller's own numbers
in it. Each class also inherits from the builtin that a Python programmer would have caught.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BessemerError(Exception):
    """The root of everything Bessemer refuses. `exit_code` is what the command line leaves with."""

    exit_code = 1


class UsageError(BessemerError, ValueError):
    """The question itself is wrong: an unknown name, a setting that cannot be. The command line leaves with 2."""

    exit_code = 2


class ImagesError(BessemerError, ValueError):
    """Images that are not floats in [0, 1] of shape (N, C, H, W)."""


class LabelsError(BessemerError, ValueError):
    """Labels that do not fit their images or the model's classes."""


class ModelError(BessemerError, TypeError):
    """A model that is not a callable from images to logits."""


class NoNumbersError(ModelError):
    """A model that answers nothing but NaN."""


class ThreatError(BessemerError, ValueError):
    """A radius that cannot be meant, or an image that left its ball."""


class DataError(BessemerError, OSError):
    """A data set that is missing, cut off or not what it should be."""


class FileError(BessemerError, OSError):
    """A file of a run that cannot be written, or is not what was written."""


class RunInUseError(BessemerError, RuntimeError):
    """Two processes want to write to one run."""


class DivergedError(BessemerError, ArithmeticError):
    """A training whose loss is no longer a number."""


class OverfittedError(BessemerError, RuntimeError):
    """A training that has learned to withstand its own attack, and no other."""


class OutOfMemoryError(BessemerError, MemoryError):
    """A batch that does not fit into memory."""


class ProcessError(BessemerError, RuntimeError):
    """Another process of the same job ended."""


class BalanceError(BessemerError, ValueError):
    """A model or layer whose gradients cannot be balanced."""


def unknown(what: str, found: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name nobody knows, with the nearest right spelling and all that is allowed."""
    allowed = sorted(allowed)
    near = get_close_matches(found, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"{what}: {found!r} is not known; {hint}allowed: {', '.join(allowed)}")
