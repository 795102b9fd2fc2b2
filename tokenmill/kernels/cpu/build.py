"""From ``src/`` to a shared library: compiled when first wanted, kept under a name that holds all it depends on.

The name is a hash of sources, flags and the compiler's version, so a new version of any of them is built beside the
old. The folder is ``$XDG_CACHE_HOME/tokenmill/kernels`` (``~/.cache`` by default). Several processes may want it at
once: the first builds under a lock, the others wait and find it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenmill.core.errors import SetupError
from tokenmill.kernels.cpu.isa import Isa

SOURCES = Path(__file__).resolve().parent / "src"
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread")
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter", "-Wno-ignored-attributes")


class NoCompiler(SetupError):
    """The kernels cannot be built here."""


def cache_folder() -> Path:
    """Where built libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "tokenmill" / "kernels"


def find_compiler() -> str:
    """Path of a C++ compiler: ``$CXX``, or the first known one on the path.

    Raises:
        NoCompiler: there is none.
    """
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        if path := shutil.which(name):
            return path
    raise NoCompiler("no C++ compiler found (g++ or clang++): install one, or set CXX to its path")


def build(isa: Isa, on_start: Callable[[], None] | None = None) -> Path:
    """The library for ``isa``, compiled if it is not there yet; ``on_start`` is called before compiling.

    Raises:
        NoCompiler: there is no compiler, it cannot compile this, or the folder cannot be written.
    """
    compiler = find_compiler()
    try:
        folder = cache_folder() / _key(compiler, isa)
        library = folder / f"libtokenmill-{isa.name}.so"
        if library.exists():
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                if on_start is not None:
                    on_start()
                _compile(compiler, isa, library)
    except OSError as error:
        raise NoCompiler(
            f"the CPU kernels cannot be built: {error}; set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return library


def _sources() -> list[Path]:
    return sorted(SOURCES.glob("*.cpp"))


def _key(compiler: str, isa: Isa) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join((version, *FLAGS, *isa.flags)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, isa: Isa, library: Path) -> None:
    """One object per source, as many at a time as there are cores, then one link; in place only when complete."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        objects = [Path(scratch) / f"{source.stem}.o" for source in _sources()]

        def one(source: Path, target: Path) -> None:
            _run([compiler, *FLAGS, *WARNINGS, *isa.flags, "-c", str(source), "-o", str(target)])

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(one, _sources(), objects))
        unfinished = Path(scratch) / library.name
        _run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(unfinished)])
        unfinished.rename(library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        reason = lines[0] if lines else f"exit status {done.returncode}"
        raise NoCompiler(f"the CPU kernels cannot be built: {reason}")
