"""What the device can do, measured in the run whose shares are taken of it.

``copy``: a large copy within the device, each byte read and written; ``read``: a large sum, which writes nothing.
Products are of square matrices of random values (equal ones draw less power, and run faster), through the vendor's
library. ``kernel_s`` is one of many tiny kernels in a graph: what no kernel goes below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.timing import elapsed, measure
from tokenmill.bench.probe.cuda import product
from tokenmill.perf.hardware import Figure, Hardware

COPY_BYTES, TOY_COPY_BYTES = 4_000_000_000, 1_000_000
MATRIX, TOY_MATRIX = 8192, 64
ARITHMETIC = ("bf16", "fp8", "int8")
REPEAT = 7
TINY_KERNELS = 100


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes and operations per second; seconds."""

    copy_bytes_per_s: float
    read_bytes_per_s: float
    peaks: Mapping[str, float]
    """By arithmetic; one that the device or PyTorch has not is missing."""
    kernel_s: float
    launch_s: float
    """The host's time to launch one, eagerly."""

    def floor_s(self, num_bytes: float, operations: float, arithmetic: str) -> tuple[float, str]:
        """The least time, and what sets it. An arithmetic without a peak of its own is done in bf16."""
        memory = num_bytes / self.copy_bytes_per_s
        compute = operations / self.peaks.get(arithmetic, self.peaks["bf16"])
        return (compute, "compute") if compute > memory else (memory, "memory")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def hardware(self, description: Mapping[str, Any]) -> Hardware:
        """As a device of the catalogue, for the cost model."""
        launch = Figure(self.launch_s, f"{TINY_KERNELS} small kernels in a row, eager", "measured")
        return Hardware(
            **description,
            memory_bytes_per_s=self.copy_bytes_per_s,
            peaks=dict(self.peaks),
            observed={"launch_latency_s": launch},
            source="measured beside the benchmark",
            confidence="measured",
        )


def find(place: Place, say: Callable[[str], None] = lambda text: None) -> Ceilings:
    """Measure: a second or two."""
    say("ceilings")
    size = TOY_MATRIX if place.toy else MATRIX
    peaks = {}
    for name in ARITHMETIC:
        try:
            call = product(name, size, place.device)
            call()
            place.synchronise()
        except (RuntimeError, NotImplementedError):  # no units for the type, or no function
            continue
        peaks[name] = 2.0 * size**3 / _best(place, call)
    copy, read = _bandwidths(place)
    one = torch.zeros(1, device=place.device)
    tiny = measure(place, [lambda: one.add_(1)] * (3 if place.toy else TINY_KERNELS))
    return Ceilings(copy, read, peaks, tiny.seconds, tiny.launch_s)


def _bandwidths(place: Place) -> tuple[float, float]:
    num_bytes = TOY_COPY_BYTES if place.toy else COPY_BYTES
    source = torch.empty(num_bytes // 4, dtype=torch.float32, device=place.device).normal_()
    target = torch.empty_like(source)
    total = torch.empty((), device=place.device)
    copy = 2 * num_bytes / _best(place, lambda: target.copy_(source))
    read = num_bytes / _best(place, lambda: torch.sum(source, dim=0, out=total))
    return copy, read


def _best(place: Place, call: Callable[[], object]) -> float:
    """The least of several runs, after two that warm up."""
    for _ in range(2):
        call()
    return min(elapsed(place, call) for _ in range(REPEAT))
