"""What the matrix products share: the shape of a program's tile, a fixed order of additions, the epilogue.

**A fixed order of additions.** The inputs are cut into chunks that depend on the matrix's shape alone; each chunk is
summed by itself, and the sums are added in ascending order. With few rows a program makes one chunk, so that a narrow
matrix fills the chip too, and leaves its sum in scratch; the last of a tile's programs to arrive (a ticket says who)
adds them all, in order: who came last cannot be seen in the result. With many rows a program makes all chunks of its
tile.

Products are computed as ``yᵀ = W xᵀ``, outputs by rows: a tile has as many columns as there are rows of x, 16 at least.
That number changes with the batch, and with it how many columns one instruction of the tensor cores has, but not in
what order the products of a column are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton.device import is_interpreted

SMALL_ROWS = 64
"""Rows up to which a program makes one chunk."""
PROGRAMS = 396
"""Programs that a product of few rows is cut into at most: three for each of an H200's multiprocessors."""
MAX_TILE_OUTPUTS = 256
"""Of a program, gate and up together."""
PLAIN_BYTES = 64 << 20
"""Of a part of a matrix that is written out at once, or of rows in FP8."""
MAX_SCALED_ROWS = 1 << 14
"""Rows that are turned into FP8 at once."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program makes, and with what."""

    rows: int
    outputs: int
    """With gate and up: of each."""
    warps: int
    stages: int


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Rows of a product sorted by the expert that they go to; what ``experts.py`` makes, read on the device."""

    experts: Tensor  # int32 [num_tiles]: a tile's expert; -1: it has no rows
    pairs: Tensor  # int32 [num_tiles * tile_rows]: rows of out by tile; num_rows or more: none
    num_tiles: int
    tile_rows: int
    num_rows: int
    num_experts: int
    share: int
    """Rows of out that one row of x serves."""


class Workspace:
    """Memory that products use while they run. One per device: they follow each other, on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.empty(PROGRAMS * MAX_TILE_OUTPUTS * SMALL_ROWS, dtype=torch.float32, device=device)
        """What programs leave of a tile, chunk by chunk."""
        self.tickets = torch.zeros(PROGRAMS, dtype=torch.int32, device=device)
        """How many programs of a tile have left theirs; 0 between products."""
        self.plain = torch.empty(PLAIN_BYTES, dtype=torch.uint8, device=device)
        """Weights written out in the type of what they are multiplied with, or rows in FP8 codes."""
        self.row_scales = torch.empty(MAX_SCALED_ROWS, dtype=torch.float32, device=device)
        self.magic = torch.full((1,), 0x43004300, dtype=torch.int32, device=device)
        """128 in bf16, twice. In memory, since the compiler spends an instruction a pair more on a constant."""

    @property
    def num_bytes(self) -> int:
        return self.sums.nbytes + self.tickets.nbytes + self.plain.nbytes + self.row_scales.nbytes + self.magic.nbytes


@lru_cache(maxsize=16)
def workspace(device: torch.device) -> Workspace:
    """The device's; ask for it once before a graph is captured."""
    return Workspace(device)


def compute_type(x: Tensor) -> tl.dtype:
    """In what products are made: bf16 for bf16, but where tensors of it cannot be had (the interpreter)."""
    return tl.float32 if is_interpreted() or x.dtype == torch.float32 else tl.bfloat16


@lru_cache(maxsize=256)
def chunks(num_slabs: int, num_tiles: int) -> int:
    """Into how many chunks of equal size the inputs are cut, so that few tiles make many programs."""
    fitting = [each for each in range(2, num_slabs + 1) if num_slabs % each == 0 and each * num_tiles <= PROGRAMS]
    return max(fitting, default=1)


@triton.jit
def last_sum(total, total2, sums_ptr, ticket_ptr, SPLIT: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
              TWO: tl.constexpr):  # fmt: skip
    """Leave this program's sums; to the last of the ``SPLIT`` that do, all of them, added in ascending order."""
    SIZE: tl.constexpr = 2 * BN * BM if TWO else BN * BM
    sums = sums_ptr + tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    mine = sums + tl.program_id(2) * SIZE
    tl.store(mine, total)
    if TWO:
        tl.store(mine + BN * BM, total2)
    tl.debug_barrier()  # every thread has written before the ticket is drawn, which publishes what was written
    is_last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == SPLIT - 1
    if is_last:
        tl.debug_barrier()
        total, total2 = tl.zeros_like(total), tl.zeros_like(total2)
        for each in range(SPLIT):
            total += tl.load(sums + each * SIZE, cache_modifier=".cg")
            if TWO:
                total2 += tl.load(sums + each * SIZE + BN * BM, cache_modifier=".cg")
        tl.store(ticket_ptr, 0)
    return total, total2, is_last


@triton.jit
def place(experts_ptr, pairs_ptr, num_rows, BM: tl.constexpr, SHARE: tl.constexpr):
    """Which rows of out and of x a program has, which of them there are, and whose expert's weights (-1: no work).

    ``SHARE`` 0: rows of a plain product, one after the other. Else rows of ``out`` are those in ``pairs`` (``num_rows``
    or more: none), each row of x serves ``SHARE`` of them, and a tile's weights are those of ``experts[tile]``.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    source, expert = m, 0
    if SHARE > 0:
        expert = tl.load(experts_ptr + tl.program_id(0))
        m = tl.load(pairs_ptr + m)
        source = m // SHARE
    return m, source, m < num_rows, expert


@triton.jit
def finish(
    total, total2, out_ptr, bias_ptr, m, n, m_mask, width, out_stride, TWO: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Bias, activation, what was there before; then ``total [BN, BM]`` goes to ``out [m, n]``."""
    n_mask = n < width
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, n_mask, 0.0).to(tl.float32)[:, None]
    if TWO:
        if HAS_BIAS:
            total2 += tl.load(bias_ptr + width + n, n_mask, 0.0).to(tl.float32)[:, None]
        total = total / (1.0 + tl.exp(-total)) * total2
    mask = n_mask[:, None] & m_mask[None, :]
    place = out_ptr + m[None, :].to(tl.int64) * out_stride + n[:, None]
    if ACCUMULATE:
        total += tl.load(place, mask, 0.0).to(tl.float32)
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask)
