"""Dry launches: Triton compiles for an H100/H200 what the real wrappers launch, without a GPU, and launches nothing.

``python -m tests.triton.dry dry_attention`` calls every launch that the module ``tests/triton/dry_attention.py`` yields
from ``launches()``, and prints one JSON line per compiled kernel: registers and stack per thread (a stack means spilled
registers), bytes of shared memory, and whether the tensor cores' ``wgmma`` is used. A process of its own, because
Triton decides once whether its functions are interpreted.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CAPABILITY = 90
"""Hopper."""
MAX_SHARED_BYTES = 227 * 1024
"""Of a block of threads, with capability 9.0 (CUDA C programming guide, table of compute capabilities)."""


class _NoDriver:
    """Says what a driver would: which chip to compile for."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only() -> list[Any]:
    """From now on launches only compile; returns the list that the compiled kernels are added to."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(_NoDriver())
    launch, compiled = JITFunction.run, []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(launch(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = run
    return compiled


def describe(kernel: Any) -> dict[str, Any]:
    """What a compiled kernel takes of the chip."""
    import triton.backends.nvidia as backend

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(backend.__file__).parent / "bin" / "cuobjdump"
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", told.stdout).groups())  # type: ignore[union-attr]
    return {
        "kernel": kernel.metadata.name,
        "warps": kernel.metadata.num_warps,
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": kernel.metadata.shared,
        "wgmma": "wgmma" in kernel.asm["ptx"],
    }


def main(module: str) -> None:
    compiled = compile_only()
    for name, launch in importlib.import_module(f"tests.triton.{module}").launches():
        before = len(compiled)
        launch()
        for kernel in compiled[before:]:
            print(json.dumps({"launch": name, **describe(kernel)}), flush=True)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main(sys.argv[1])
