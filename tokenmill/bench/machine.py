"""Where a result was measured: the machine, the versions, the command. No figure is kept without this record."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokenmill import __version__

PACKAGES = ("torch", "numpy", "tokenizers", "uvicorn", "starlette")
ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = re.compile(r"(?<![\w.…])/(?:[^\s/'\"]+/)+")


def machine_record() -> dict[str, Any]:
    """The machine and the versions of what ran on it; nothing that names a person or a host."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {"tokenmill": __version__}
        | {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "commit": _commit(),
    }


def make_result(kind: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it is kept under ``results/``: ``figures`` with the machine, the moment and the command."""
    return {
        "bench": kind,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["tokenmill", *sys.argv[1:]]),
        "machine": machine_record(),
        **figures,
    }


def without_folders(value: Any) -> Any:
    """``value`` with the folders of this machine, which are not for the record, cut from every text in it."""
    if isinstance(value, str):
        return _FOLDERS.sub("…/", value)
    if isinstance(value, Mapping):
        return {name: without_folders(each) for name, each in value.items()}
    return [without_folders(each) for each in value] if isinstance(value, list | tuple) else value


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Keep a result as indented JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that the code was run from, with ``+`` if files differ; None outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
