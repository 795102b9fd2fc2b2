"""A server in a process of its own, for clients that nobody here wrote.

The clients live in an environment of their own (``make test-clients``): what they require must not decide what the
engine runs with. So nothing here imports ``tokenmill``; ``TOKENMILL`` names the command.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

MODEL = "story"
START_S = 180.0
"""Kernels may have to be compiled first."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the built-in model, and a place for files and batches."""
    port, folder = _free_port(), tmp_path_factory.mktemp("server")
    log = (folder / "log").open("w+")
    words = [os.environ.get("TOKENMILL", "tokenmill"), "serve", MODEL, "--port", str(port)]
    process = subprocess.Popen([*words, "--store-dir", str(folder / "store")], stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/health/ready", process, Path(log.name))
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None, "the server did not outlive its clients"
    finally:
        process.terminate()
        process.wait(60)
        log.close()


@pytest.fixture(scope="session")
def v1(server: str) -> str:
    return f"{server}/v1"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            time.sleep(0.2)
