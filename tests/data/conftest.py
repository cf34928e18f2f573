"""No test looks into the user's own cache or data directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL = os.environ.get("BESSEMER_DATA")


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """Data is found only where the test says."""
    monkeypatch.delenv("BESSEMER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def real_data():
    """The data directory that `$BESSEMER_DATA` named; a function that skips where it lacks a folder."""

    def holding(folder: str) -> Path:
        if REAL is None:
            pytest.skip("$BESSEMER_DATA is not set: no real data to check")
        if not (Path(REAL) / folder).is_dir():
            pytest.skip(f"$BESSEMER_DATA ({REAL}) has no folder {folder}")
        return Path(REAL)

    return holding
