"""The ceilings that kernels are held against: how fast this machine reads memory and multiplies, with so many threads.

A ceiling is the best of several runs: what nobody disturbed. ``src/probe.cpp`` has the kernels. How much is read and
multiplied decides how long it takes and how sure it is: a server takes a tenth of a second, a benchmark longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from tokenmill.kernels.cpu.library import Library, Pool
from tokenmill.kernels.cpu.memory import Buffer
from tokenmill.kernels.cpu.program import Program
from tokenmill.kernels.cpu.records import ProbeArgs, Step

ACCUMULATORS = 24  # of the probe's tile
CALLS = 500
"""Of a program of empty kernels."""
QUICK_BYTES, QUICK_ROUNDS = 256_000_000, 500_000
"""For a server's start. Less would be read from caches."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine can do with so many threads."""

    bytes_per_s: float
    bf16_per_s: float
    int8_per_s: float
    call_s: float = 0.0
    """A kernel that does nothing, within a program: what its start and its barrier take."""

    def floor_s(self, num_bytes: float, operations: float, *, integers: bool) -> tuple[float, str]:
        """The least time, and what bounds it."""
        memory, compute = num_bytes / self.bytes_per_s, operations / (self.int8_per_s if integers else self.bf16_per_s)
        return (memory, "memory") if memory >= compute else (compute, "compute")


class Reader:
    """How fast memory is read just now. Others may share it, so that it is twice as quick at one time as at another."""

    def __init__(self, library: Library, pool: Pool, num_bytes: int = QUICK_BYTES) -> None:
        self.num_bytes = num_bytes
        self._data = Buffer.allocate(num_bytes)
        self._data.array(np.uint8)[:] = 1
        self._sink = np.zeros((pool.num_threads, 16), np.float32)
        program = Program(library)
        program.add("probe_read", ProbeArgs(self._data.address, num_bytes, 0, self._sink.ctypes.data))
        self._run = partial(program.run, pool, Step())

    def bytes_per_s(self, repeat: int = 3) -> float:
        """The best of several readings."""
        return self.num_bytes / min(times(self._run, repeat))


def measure(
    library: Library, pool: Pool, repeat: int = 3, num_bytes: int = QUICK_BYTES, num_rounds: int = QUICK_ROUNDS
) -> Ceilings:
    """The best of ``repeat`` runs each, reading ``num_bytes`` and multiplying ``num_rounds`` times."""
    sink = np.zeros((pool.num_threads, 16), np.float32)

    def best(kernel: str) -> float:
        program = Program(library)
        program.add(kernel, ProbeArgs(None, 0, num_rounds, sink.ctypes.data))
        return min(times(partial(program.run, pool, Step()), repeat))

    rounds = num_rounds * ACCUMULATORS * 16 * pool.num_threads
    bandwidth = Reader(library, pool, num_bytes).bytes_per_s(repeat)
    empty = Program(library)
    for _ in range(CALLS):
        empty.add("probe_read", ProbeArgs(None, 0, 0, sink.ctypes.data))
    call_s = min(times(partial(empty.run, pool, Step()), repeat)) / CALLS
    return Ceilings(bandwidth, rounds * 2 * 2 / best("probe_bf16"), rounds * 4 * 2 / best("probe_int8"), call_s)


def times(call: Callable[[], None], repeat: int) -> list[float]:
    """Seconds of each of ``repeat`` calls, after one that is not counted."""
    call()
    found = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found
