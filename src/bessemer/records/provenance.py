"""Where a result came from: command, commit, versions, hardware, seed and time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("bessemer", "torch", "numpy", "scipy", "opencv-python-headless")


def provenance(**more: Any) -> dict[str, Any]:
    """What a reader needs to make the result again; `more` is added as it is (seed, seconds, device, threads)."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return {
        "command": " ".join([program, *sys.argv[1:]]),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def commit() -> str:
    """The commit this source tree stands at, with `+` where files differ from it; empty where there is no git."""
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # else it is somebody else's repository
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
