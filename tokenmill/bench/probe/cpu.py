"""A processor: bandwidth by threads, peaks by type, what the kernels reach of both, and the price of a call.

With the fast kernels (``kernels/cpu``) the ceilings are those of ``bench kernels``: a gigabyte read by so many threads,
and products that never leave the registers. float32 has no such kernel; its peak is PyTorch's matrix product. Where the
kernels cannot be built PyTorch stands in for all of it, and what it cannot show is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from tokenmill.bench.kernels import Reader, linear_cases, measure_ceilings
from tokenmill.bench.probe.samples import Samples, rates, times
from tokenmill.kernels.cpu.library import Library, Pool
from tokenmill.kernels.cpu.program import Program
from tokenmill.kernels.cpu.records import ProbeArgs, Step, WeightFormat

MATRIX = 2048
"""Rows and columns of the matrices that are multiplied."""
MANY_ROWS, QUICK_ROWS = 128, 64
CALLS = 1000
CEILING_RUNS = 3
TORCH_READ_BYTES = 400_000_000


def thread_counts(num_threads: int) -> list[int]:
    """1, 2, 4, … and ``num_threads``."""
    return [*(1 << power for power in range((num_threads - 1).bit_length())), num_threads]


def with_kernels(
    library: Library, num_threads: int, repeat: int, quick: bool, progress: Callable[[str], None]
) -> dict[str, Samples]:
    """Every figure that the fast kernels can show."""
    found: dict[str, Samples] = {}
    for count in thread_counts(num_threads):
        progress(f"memory bandwidth, {count} threads")
        reader = Reader(library, library.new_pool(count))
        seen = tuple(reader.bytes_per_s(1) for _ in range(repeat))
        found[f"memory_bytes_per_s_threads_{count}"] = Samples(seen, f"reading 1 GB, {count} threads")
    pool = library.new_pool(num_threads)
    progress("peaks")
    ceilings = [measure_ceilings(library, pool, CEILING_RUNS) for _ in range(CEILING_RUNS)]
    how = f"products in registers ({library.isa.name}), {num_threads} threads, best of {CEILING_RUNS} each"
    found["peaks.bf16"] = Samples(tuple(each.bf16_per_s for each in ceilings), how)
    found["peaks.int8"] = Samples(tuple(each.int8_per_s for each in ceilings), how)
    progress("products")
    found |= _products(library, pool, repeat, QUICK_ROWS if quick else MANY_ROWS, found)
    progress("launch")
    return found | _launches(library, pool, repeat)


def _products(library: Library, pool: Pool, repeat: int, many: int, ceilings: dict[str, Samples]) -> dict[str, Samples]:
    """The linear kernels' shares: one row, bound by memory, and many rows, bound by arithmetic."""
    bandwidth = ceilings[f"memory_bytes_per_s_threads_{pool.num_threads}"].best
    found = {}
    for form in WeightFormat:
        name = form.name.lower()
        for rows, case in zip((1, many), linear_cases(library, name, form, MATRIX, MATRIX, (1, many)), strict=True):
            seconds = times(partial(case.program.run, pool, case.step), repeat)
            how = f"linear_{name}, {rows} × {MATRIX} × {MATRIX}, weights from memory"
            if rows == 1:
                work, ceiling, share = case.num_bytes, bandwidth, "bandwidth"
            else:
                peak = "peaks.int8" if case.integers else "peaks.bf16"
                work, ceiling, share = case.operations, ceilings[peak].best, "peak"
            found[f"gemm_{share}_share_{name}"] = rates(case.num_calls * work, seconds, how).share_of(ceiling)
    return found


def _launches(library: Library, pool: Pool, repeat: int) -> dict[str, Samples]:
    """An empty kernel: from Python to the pool and back, and each further one of the same program."""
    sink = np.zeros((pool.num_threads, 16), np.float32)
    args = ProbeArgs(None, 0, 0, sink.ctypes.data)
    one, more = Program(library), Program(library)
    one.add("probe_read", args)
    for _ in range(1 + CALLS):
        more.add("probe_read", args)

    def often() -> None:
        for _ in range(CALLS):
            one.run(pool, Step())

    launches = [seconds / CALLS for seconds in times(often, repeat)]
    steps = [seconds / (1 + CALLS) for seconds in times(partial(more.run, pool, Step()), repeat)]
    return {
        "launch_latency_s": Samples(
            tuple(launches), "a program of one empty kernel, from Python and back", seconds=True
        ),
        "kernel_floor_s": Samples(tuple(steps), f"an empty kernel in a program of {1 + CALLS}", seconds=True),
    }


# ---- PyTorch ---------------------------------------------------------------------------------------------


def with_torch(num_threads: int, repeat: int, progress: Callable[[str], None]) -> dict[str, Samples]:
    """Bandwidth by threads and the peak in bfloat16, where there are no fast kernels."""
    found: dict[str, Samples] = {}
    data = torch.ones(TORCH_READ_BYTES // 4)
    for count in thread_counts(num_threads):
        progress(f"memory bandwidth, {count} threads")
        with _torch_threads(count):
            seconds = times(data.sum, repeat)
        how = f"torch.sum over {TORCH_READ_BYTES // 1_000_000} MB, {count} threads"
        found[f"memory_bytes_per_s_threads_{count}"] = rates(TORCH_READ_BYTES, seconds, how)
    return found | {"peaks.bf16": torch_product(torch.bfloat16, num_threads, repeat)}


def torch_product(dtype: torch.dtype, num_threads: int, repeat: int) -> Samples:
    """Operations per second of PyTorch's product of two square matrices."""
    a, b = torch.ones(MATRIX, MATRIX, dtype=dtype), torch.ones(MATRIX, MATRIX, dtype=dtype)
    with _torch_threads(num_threads):
        seconds = times(lambda: torch.mm(a, b), repeat)
    how = f"torch.mm, {MATRIX} × {MATRIX} × {MATRIX}, {num_threads} threads"
    return rates(2.0 * MATRIX**3, seconds, how)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
