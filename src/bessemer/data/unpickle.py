"""Reading a pickle without trusting it.

A pickle is a program: it names functions and calls them. This reader knows no functions. The few names that NumPy's
arrays and Python's bytes need are answered with stand-ins that only remember what they are given, so that nothing but
byte arrays, bytes, strings, lists, dicts and numbers is ever made, and nothing at all is executed.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bessemer.errors import DataError


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a pickle, its keys as text, its values as they are (Python 2's strings as bytes).

    Raises `DataError` where the file is damaged or asks for anything but plain data.
    """
    try:
        content = path.read_bytes()
        _require_honest_sizes(content)
        held = _Reader(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(held, dict):
            raise _RefusedError(f"holds a {type(held).__name__} where a dict is expected; get the published file")
        return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in held.items()}
    except _RefusedError as problem:
        raise DataError(f"{path} {problem}") from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
    except _STUMBLES as problem:
        raise DataError(f"{path} is cut off or corrupt ({problem}); get the published file") from problem


# what the reader stumbles over where bytes are missing or wrong
_STUMBLES = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def _require_honest_sizes(content: bytes) -> None:
    """Refuse a file that would have gigabytes set aside: by a length beyond its end, or a place far out in the memo."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "LONG_BINPUT") and argument is not None and argument > len(content):
            raise ValueError(f"place {argument} in a memo that cannot be as large")


class _RefusedError(Exception):
    """What was seen, less the file's name."""


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


class _StandIn:
    """Remembers what a pickle says of an object."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_StandIn):
    """Stands for numpy.dtype: (name, align, copy)."""


class _Array(_StandIn):
    """Stands for numpy.ndarray; its state is (version, shape, type, in Fortran's order, bytes)."""

    def array(self) -> npt.NDArray[np.uint8]:
        """The array, if it is one of bytes."""
        _, shape, kind, fortran, content = self.state
        if kind.arguments[0] not in ("u1", b"u1"):
            raise _RefusedError(
                f"holds an array of {kind.arguments[0]!r} where one of bytes is expected; get the published file"
            )
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Encode(_StandIn):
    """Stands for _codecs.encode: how Python 3 writes bytes in a protocol of Python 2."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        """The bytes themselves."""
        if encoding != "latin1":
            raise ValueError(f"bytes in the encoding {encoding!r}")
        return text.encode("latin-1")


_KNOWN = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "_codecs.encode": _Encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(f"{module}.{name}")
        if known is None:
            raise _RefusedError(
                f"asks for {module}.{name}, which plain data never does; nothing was executed: "
                "do not trust this file, get the published one"
            )
        return known
