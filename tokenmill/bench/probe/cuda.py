"""A CUDA (or ROCm) device through PyTorch: copies, matrix products, launches, and the way to the host's memory.

Products are of matrices large enough to fill the device, with sums in 32 bits and float32 without TF32. A figure that a
device or a version of PyTorch has no function for is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tokenmill.bench.probe.samples import Samples, rates, times

PLAIN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    matrix: int = 8192
    copy_bytes: int = 1_000_000_000
    copies: int = 8
    """One after the other, so that waiting for them is a hundredth of what is timed."""
    calls: int = 1000
    products: int = 4


FULL, QUICK, TOY = Sizes(), Sizes(matrix=4096), Sizes(64, 1_000_000, 2, 10, 1)
"""``TOY`` is for a rehearsal on the CPU."""

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


def measure(
    repeat: int, sizes: Sizes, progress: Callable[[str], None], device: torch.device | str = "cuda"
) -> dict[str, Samples]:
    """Every figure of ``device``."""
    device = torch.device(device)
    progress("memory bandwidth")
    found = _copies(repeat, sizes, device)
    size = sizes.matrix
    for name in (*PLAIN, "int8", "fp8"):
        progress(f"products in {name}")
        try:
            seconds = times(_synchronised(product(name, size, device), sizes.products, device), repeat)
        except (RuntimeError, NotImplementedError):  # no units for the type, or no function
            continue
        found[f"peaks.{name}"] = rates(sizes.products * 2.0 * size**3, seconds, f"torch, {size} × {size} × {size}")
    progress("launch")
    one, calls = torch.zeros(1, device=device), sizes.calls
    launches = [seconds / calls for seconds in times(_synchronised(lambda: one.add_(1), calls, device), repeat)]
    return found | {
        "launch_latency_s": Samples(tuple(launches), f"{calls} small kernels in a row, eager", seconds=True)
    }


def describe() -> dict[str, Any]:
    """What the driver says about the device: fields of ``Hardware``."""
    return description_of(torch.cuda.get_device_properties(torch.cuda.current_device()), torch.cuda.device_count())


def description_of(properties: Any, num_devices: int) -> dict[str, Any]:
    """The same from what PyTorch tells of a device."""
    rocm = getattr(torch.version, "hip", None) is not None
    family = properties.gcnArchName.split(":")[0] if rocm else FAMILIES.get((properties.major, properties.minor))
    return {
        "name": properties.name,
        "kind": "gpu",
        "vendor": "amd" if rocm else "nvidia",
        "family": family or f"sm{properties.major}{properties.minor}",
        "memory_bytes": float(properties.total_memory),
        "devices_per_node": num_devices,
    }


def _copies(repeat: int, sizes: Sizes, device: torch.device) -> dict[str, Samples]:
    """Within the device (each byte is read and written), and from pinned memory of the host."""
    a = torch.empty(sizes.copy_bytes // 4, device=device).normal_()
    b = torch.empty_like(a)
    pinned = torch.empty(sizes.copy_bytes // 4, pin_memory=device.type == "cuda").normal_()
    inside = times(_synchronised(lambda: b.copy_(a), sizes.copies, device), repeat)
    host = times(_synchronised(lambda: b.copy_(pinned, non_blocking=True), 1, device), repeat)
    size = f"{sizes.copy_bytes / 1e9:g} GB"
    return {
        "memory_bytes_per_s": rates(
            sizes.copies * 2 * sizes.copy_bytes, inside, f"copying {size} within the device, read and written"
        ),
        "host_link_bytes_per_s": rates(sizes.copy_bytes, host, f"copying {size} from pinned memory"),
    }


def product(name: str, size: int, device: torch.device | str) -> Callable[[], object]:
    """A product of two square matrices of random values: equal ones would draw less power, and so run faster.

    The first call tells whether the device and this version of PyTorch have a function for it.

    Raises:
        RuntimeError: they have not, as is known beforehand.
    """
    if name == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RuntimeError("no units for bf16")
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    if name == "int8":
        left, right = a.mul(40).to(torch.int8), b.mul(40).to(torch.int8).t()
        return lambda: torch._int_mm(left, right)
    if name == "fp8":
        left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        scale = torch.ones((), device=device)
        return lambda: torch._scaled_mm(left, right, scale, scale, out_dtype=torch.bfloat16)
    left, right = a.to(PLAIN[name]), b.to(PLAIN[name])
    return lambda: torch.mm(left, right)


def _synchronised(call: Callable[[], object], count: int, device: torch.device) -> Callable[[], None]:
    """``count`` calls, and waiting until the device has done them."""

    def run() -> None:
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
