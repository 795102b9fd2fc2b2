"""A CUDA (or ROCm) device through PyTorch: copies, matrix products, launches, and the way to the host's memory.

Products are of matrices large enough to fill the device, with sums in 32 bits and float32 without TF32. A figure that a
device or a version of PyTorch has no function for is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tokenmill.bench.probe.samples import Samples, rates, times

MATRIX, QUICK_MATRIX = 8192, 4096
COPY_BYTES = 1_000_000_000
CALLS = 1000
PRODUCTS = 4
PLAIN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

FAMILIES = {
    (7, 0): "volta",
    (7, 5): "turing",
    (8, 0): "ampere",
    (8, 6): "ampere-rtx",
    (8, 7): "ampere",
    (8, 9): "ada",
    (9, 0): "hopper",
    (10, 0): "blackwell",
    (10, 3): "blackwell",
    (12, 0): "blackwell-rtx",
    (12, 1): "blackwell-rtx",
}
"""By compute capability."""


def measure(repeat: int, quick: bool, progress: Callable[[str], None]) -> dict[str, Samples]:
    """Every figure of the current device."""
    progress("memory bandwidth")
    found = _copies(repeat)
    size = QUICK_MATRIX if quick else MATRIX
    for name in (*PLAIN, "int8", "fp8"):
        progress(f"products in {name}")
        try:
            seconds = times(_synchronised(_product(name, size), PRODUCTS), repeat)
        except RuntimeError:  # no units for the type, or no function
            continue
        found[f"peaks.{name}"] = rates(PRODUCTS * 2.0 * size**3, seconds, f"torch, {size} × {size} × {size}")
    progress("launch")
    one = torch.zeros(1, device="cuda")
    launches = [seconds / CALLS for seconds in times(_synchronised(lambda: one.add_(1), CALLS), repeat)]
    return found | {
        "launch_latency_s": Samples(tuple(launches), f"{CALLS} small kernels in a row, eager", seconds=True)
    }


def describe() -> dict[str, Any]:
    """What the driver says about the device: fields of ``Hardware``."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    rocm = getattr(torch.version, "hip", None) is not None
    family = properties.gcnArchName.split(":")[0] if rocm else FAMILIES.get((properties.major, properties.minor))
    return {
        "name": properties.name,
        "kind": "gpu",
        "vendor": "amd" if rocm else "nvidia",
        "family": family or f"sm{properties.major}{properties.minor}",
        "memory_bytes": float(properties.total_memory),
        "devices_per_node": torch.cuda.device_count(),
    }


def _copies(repeat: int) -> dict[str, Samples]:
    """Within the device (each byte is read and written), and from pinned memory of the host."""
    a = torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    pinned = torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory()
    inside = times(_synchronised(lambda: b.copy_(a), 1), repeat)
    host = times(_synchronised(lambda: b.copy_(pinned, non_blocking=True), 1), repeat)
    return {
        "memory_bytes_per_s": rates(2 * COPY_BYTES, inside, "copying 1 GB within the device, read and written"),
        "host_link_bytes_per_s": rates(COPY_BYTES, host, "copying 1 GB from pinned memory"),
    }


def _product(name: str, size: int) -> Callable[[], object]:
    """A product of two square matrices of random values: equal ones would draw less power, and so run faster.

    Raises:
        RuntimeError: not on this device, or not with this version of PyTorch.
    """
    if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RuntimeError("no units for bf16")
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    if name == "int8":
        left, right = a.mul(40).to(torch.int8), b.mul(40).to(torch.int8).t()
        return lambda: torch._int_mm(left, right)
    if name == "fp8":
        left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        scale = torch.ones((), device="cuda")
        return lambda: torch._scaled_mm(left, right, scale, scale, out_dtype=torch.bfloat16)
    left, right = a.to(PLAIN[name]), b.to(PLAIN[name])
    return lambda: torch.mm(left, right)


def _synchronised(call: Callable[[], object], count: int) -> Callable[[], None]:
    """``count`` calls, and waiting until the device has done them."""

    def run() -> None:
        for _ in range(count):
            call()
        torch.cuda.synchronize()

    return run
