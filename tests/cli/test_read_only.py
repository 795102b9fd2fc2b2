"""SE-26: the command itself, where nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx

from tests.cli.support import ROOT


def test_se26_a_server_with_nowhere_to_write() -> None:
    """SE-26: no home, no cache, a working directory that is read-only: it says what it lacks, and serves."""
    environment = {**os.environ, "HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, "-m", "tokenmill", "serve", "story-draft", "--port", "0", "--ceilings", "none"]
    command += ["--max-context", "64", "--num-blocks", "16"]
    process = subprocess.Popen(
        command, cwd="/proc", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("tokenmill is ready on "), ready
        url = ready.split()[4].rstrip(":")
        body = {"model": "story-draft", "prompt": "a", "max_tokens": 2}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=30).status_code == 200
    finally:
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "reference kernels" in told and "XDG_CACHE_HOME" in told
