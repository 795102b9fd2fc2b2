"""Every kernel compiles for Hopper at real shapes, fits its shared memory and spills no registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.triton.dry import MAX_SHARED_BYTES

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("dry_*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_compiles_for_hopper(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.dry", module]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert kernels, "nothing was launched"
    for kernel in kernels:
        assert kernel["shared_bytes"] <= MAX_SHARED_BYTES, kernel
        assert kernel["stack_bytes"] == 0, f"registers are spilled: {kernel}"
