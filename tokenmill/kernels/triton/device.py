"""What the kernels' launchers must know of the chip, and whether there is one.

Without a CUDA device (compiling ahead of time, or Triton's interpreter) the figures are those of an H200 SXM:
132 multiprocessors, 227 KiB of shared memory for a block of threads, capability 9.0 (NVIDIA H200 data sheet; CUDA C
programming guide, table of compute capabilities).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from triton import knobs


@dataclass(frozen=True, slots=True)
class Chip:
    """A GPU, as far as grids and tiles depend on it."""

    name: str
    num_multiprocessors: int
    shared_bytes: int
    """The most shared memory that one block of threads can have."""
    capability: tuple[int, int]
    """Compute capability of an NVIDIA chip; of an AMD chip the numbers of its gfx name."""
    vendor: str
    """``nvidia`` or ``amd``."""

    @property
    def native_e4m3(self) -> bool:
        """Whether it converts to and from float8 e4m3 by itself (Ada, Hopper and later)."""
        return self.vendor == "nvidia" and self.capability >= (8, 9)


H200 = Chip("NVIDIA H200", 132, 227 * 1024, (9, 0), "nvidia")


@lru_cache(maxsize=1)
def chip() -> Chip:
    """The current CUDA (or ROCm) device; an H200 where there is none."""
    if not torch.cuda.is_available():
        return H200
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Chip(
        name=found.name,
        num_multiprocessors=found.multi_processor_count,
        shared_bytes=getattr(found, "shared_memory_per_block_optin", 64 * 1024),
        capability=(found.major, found.minor),
        vendor="amd" if torch.version.hip else "nvidia",
    )


def is_interpreted() -> bool:
    """Whether Triton runs its functions in Python, on tensors in main memory (``TRITON_INTERPRET=1``)."""
    return bool(knobs.runtime.interpret)


def has_native_e4m3() -> bool:
    """Whether kernels may leave e4m3 to the chip's own instructions; the interpreter's do not round right."""
    return not is_interpreted() and chip().native_e4m3
