"""What the GPU does at best, in a tenth of a second: what a server's MFU and MBU are shares of.

A copy larger than its caches, and products of random matrices large enough to fill it. The buffers are small, because
by then the KV pool has most of the memory; ``tokenmill probe --device cuda`` takes its time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch

from tokenmill.perf.hardware import Hardware
from tokenmill.perf.hardware.catalogue import lookup

COPY_BYTES = 128_000_000
MATRIX = 4096
REPEAT = 5


def measure_gpu(device: torch.device) -> Hardware | None:
    """The device, with the catalogue's family if it is known there; where no memory is left to measure with, what the
    catalogue says of it, if anything."""
    properties = torch.cuda.get_device_properties(device)
    known = lookup(properties.name)
    try:
        bandwidth, peaks = _bandwidth(device), _peaks(device)
    except torch.OutOfMemoryError:
        return known
    finally:
        torch.cuda.empty_cache()
    return Hardware(
        name=properties.name,
        kind="gpu",
        vendor="amd" if torch.version.hip else "nvidia",
        family=known.family if known else "",
        memory_bytes=float(properties.total_memory),
        memory_bytes_per_s=bandwidth,
        peaks=peaks,
        source="measured at the start",
        confidence="measured",
    )


def _bandwidth(device: torch.device) -> float:
    """Bytes read and written per second."""
    source = torch.empty(COPY_BYTES // 4, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _best(lambda: target.copy_(source))


def _peaks(device: torch.device) -> dict[str, float]:
    """Operations per second; without FP8 where the device has no units for it."""
    a, b = (torch.empty(MATRIX, MATRIX, device=device, dtype=torch.bfloat16).normal_() for _ in range(2))
    operations = 2.0 * MATRIX**3
    peaks = {"bf16": operations / _best(lambda: torch.mm(a, b))}
    left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=device)
    with suppress(RuntimeError, NotImplementedError):
        peaks["fp8"] = operations / _best(lambda: torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16))
    return peaks


def _best(call: Callable[[], object]) -> float:
    """Seconds of the quickest of several runs, after one that warms up."""
    call()
    found = []
    for _ in range(REPEAT):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(float(begin.elapsed_time(end)) / 1e3)
    return min(found)
