"""Products with a matrix of int8 or int4 in groups; what it is multiplied with stays in bf16.

**Few rows** are bound by reading the weights, and int4 comes at 38 weights per cycle and multiprocessor (4.3 TB/s, 132
multiprocessors at 1.7 GHz), against 64 integer operations and 128 instructions of any kind: unpacking may cost little
more than one instruction a weight. So the product is computed the other way round, ``yᵀ = W xᵀ``: the tensor cores take
their first operand from registers, where one register holds two neighbouring inputs, and the weights' words are laid
out so that a thread unpacks what its registers need (``quantize.py``): no weight moves between threads. A pair becomes
bf16 by its bits: ``0x4300 | v`` is 128 + v for v < 128. Of int4 136 is taken off; of int8 the lower seven bits make
128 + v, and what is taken off is 128, or 256 where the sign is set; both are exact. That is a shift, one or two logical
operations and one subtraction a pair. Scales multiply a group's sums in float32, not its weights.

**Many rows** are bound by the tensor cores. From ``PLAIN_ROWS`` rows on the matrix is written out in bf16 and
multiplied by the vendor's library. Of w weights in int4 that moves 4.5 w bytes (read, write and read again) at 4.3
TB/s, and 2 T w operations then run at some 700 TFLOP/s, against some 400 here, where each tile of weights is unpacked
anew for every 128 rows (both are estimates yet to be measured): even at T = 4.5 / 4.3e12 / (2 / 400e12 - 2 / 700e12),
about 490. With ``invariant`` the kernel does it all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton.quantize import BITS, PackedWeight
from tokenmill.kernels.triton.tiles import (
    SMALL_ROWS,
    Groups,
    Tile,
    chunks,
    compute_type,
    finish,
    last_sum,
    place,
    workspace,
)

PLAIN_ROWS = 512
"""Rows from which a matrix is written out and multiplied by the vendor's library."""
TILES: dict[tuple[str, bool], dict[int, Tile]] = {
    ("int4", False): {16: Tile(16, 128, 4, 3), 64: Tile(64, 128, 8, 3), 128: Tile(128, 128, 8, 2)},
    ("int4", True): {16: Tile(16, 64, 4, 3), 64: Tile(64, 128, 8, 2)},
    ("int8", False): {16: Tile(16, 64, 4, 3), 64: Tile(64, 64, 4, 3), 128: Tile(128, 128, 8, 2)},
    ("int8", True): {16: Tile(16, 64, 4, 3), 64: Tile(64, 128, 8, 2)},
}
"""By form and whether gate and up are joined; then by the most rows. For Hopper, and sane elsewhere."""


def linear_int(
    x: Tensor,
    weight: PackedWeight,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    accumulate: bool = False,
    invariant: bool = False,
    silu_mul: bool = False,
    groups: Groups | None = None,
) -> None:
    """The product by the kernel, whatever the number of rows; see ``linear`` for the arguments."""
    num_rows = len(x) if groups is None else groups.num_rows
    if num_rows == 0:
        return
    tiles = TILES[weight.form, silu_mul]
    small = num_rows <= SMALL_ROWS
    rows = 16 if num_rows <= 16 else 64 if small or invariant or silu_mul else 128
    tile = tiles[rows if groups is None else groups.tile_rows]
    num_slabs = len(weight.words)
    width = (weight.out_size if groups is None else weight.out_size // groups.num_experts) // (2 if silu_mul else 1)
    num_chunks = 1
    if groups is None and (small or invariant):
        num_chunks = chunks(num_slabs, triton.cdiv(width, tiles[16].outputs))
    space = workspace(x.device)
    split = num_chunks if small else 1
    num_row_tiles = triton.cdiv(num_rows, tile.rows) if groups is None else groups.num_tiles
    _kernel[num_row_tiles, triton.cdiv(width, tile.outputs), split](
        x, weight.words, weight.scales.view(torch.int32), out, bias, None if groups is None else groups.experts,
        None if groups is None else groups.pairs, space.sums, space.tickets, space.magic,
        num_rows, width, weight.out_size, x.stride(0), out.stride(0),
        IN_SIZE=weight.in_size, STEPS=num_slabs // split, CHUNK=num_slabs // num_chunks, SPLIT=split,
        BITS=BITS[weight.form], GROUP=weight.group, BM=tile.rows, BN=tile.outputs, SILU_MUL=silu_mul,
        HAS_BIAS=bias is not None, ACCUMULATE=accumulate, SHARE=0 if groups is None else groups.share,
        COMPUTE=compute_type(x), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def write_out(weight: PackedWeight, first: int, out: Tensor) -> None:
    """Rows ``first …`` of the matrix that is computed with, to ``out [n, in_size]`` in a float type."""
    _write_out[triton.cdiv(len(out), 64), len(weight.words)](
        weight.words, weight.scales.view(torch.int32), out, workspace(out.device).magic, first, len(out),
        weight.out_size, out.stride(0), IN_SIZE=weight.in_size, BITS=BITS[weight.form], GROUP=weight.group, BN=64,
        COMPUTE=compute_type(out), num_warps=4,
    )  # fmt: skip


@triton.jit
def _halves(pairs, COMPUTE: tl.constexpr):
    """Two bf16 from each word, side by side: int32 ``[n, 16]`` to ``[n, 32]``."""
    both = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16)).reshape(pairs.shape[0], 2 * pairs.shape[1])
    if COMPUTE == tl.bfloat16:  # noqa: SIM300
        values = both.to(tl.bfloat16, bitcast=True)
    else:
        values = (both.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return values


@triton.jit
def unpack(words, PLANE: tl.constexpr, BITS: tl.constexpr, magic, COMPUTE: tl.constexpr):
    """A plane of a block of words ``[n, 16]``: the integers of 32 inputs, ``[n, 32]``."""
    pairs = words >> (BITS * PLANE)
    if BITS == 4:
        values = _halves((pairs & 0x000F000F) | magic, COMPUTE) - 136.0
    else:
        values = _halves((pairs & 0x007F007F) | magic, COMPUTE) - _halves((pairs & 0x00800080) | magic, COMPUTE)
    return values.to(COMPUTE)


@triton.jit
def scale(pairs, HALF: tl.constexpr):
    """One of the two float16 in a word."""
    return (pairs >> (16 * HALF)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def add_slab(
    acc, acc2, xs, m_mask, words, words2, scales, scales2, n_mask, k, magic, stride,
    IN_SIZE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, TWO: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """``acc [BN, BM]`` and what 256 inputs from ``k`` add to it; with ``TWO`` the same for another matrix.

    ``xs``: places of the inputs ``0 … 31`` of each row; ``words``, ``scales``: of this slab; ``stride``: between pairs.
    """
    part, part2 = acc, acc2
    for at in tl.static_range(0, 256, 32):
        if at % (512 // BITS) == 0:
            w = tl.load(words + at * BITS // 32, n_mask[:, None], 0)
            if TWO:
                w2 = tl.load(words2 + at * BITS // 32, n_mask[:, None], 0)
        if at % (2 * GROUP) == 0:
            pairs = tl.load(scales + at // (2 * GROUP) * stride, n_mask, 0)
            if TWO:
                pairs2 = tl.load(scales2 + at // (2 * GROUP) * stride, n_mask, 0)
        if at % GROUP == 0:
            part, part2 = tl.zeros_like(acc), tl.zeros_like(acc2)
        if IN_SIZE % 256 == 0:
            x = tl.load(xs + (k + at), m_mask[None, :], 0.0).to(COMPUTE)
        else:
            x = tl.load(xs + (k + at), m_mask[None, :] & (k + at + tl.arange(0, 32) < IN_SIZE)[:, None], 0.0).to(
                COMPUTE
            )
        part = tl.dot(unpack(w, at // 32 % (16 // BITS), BITS, magic, COMPUTE), x, part, input_precision="ieee")
        if TWO:
            part2 = tl.dot(unpack(w2, at // 32 % (16 // BITS), BITS, magic, COMPUTE), x, part2, input_precision="ieee")
        if (at + 32) % GROUP == 0:
            acc += part * scale(pairs, at // GROUP % 2)[:, None]
            if TWO:
                acc2 += part2 * scale(pairs2, at // GROUP % 2)[:, None]
    return acc, acc2


@triton.jit
def _kernel(
    x_ptr, words_ptr, scales_ptr, out_ptr, bias_ptr, experts_ptr, pairs_ptr, sums_ptr, tickets_ptr, magic_ptr,
    num_rows, width, stride, x_stride, out_stride,
    IN_SIZE: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SILU_MUL: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACCUMULATE: tl.constexpr, SHARE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    m, source, m_mask, expert = place(experts_ptr, pairs_ptr, num_rows, BM, SHARE)
    if SHARE > 0:  # noqa: SIM102 - known when compiling, unlike the other
        if expert < 0:
            return
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    n_mask = n < width
    WORDS: tl.constexpr = 8 * BITS
    at = expert * width * (2 if SILU_MUL else 1) + n  # of the rows of all experts, which ``stride`` counts
    xs = x_ptr + source[None, :].to(tl.int64) * x_stride + tl.arange(0, 32)[:, None]
    ws = words_ptr + at[:, None].to(tl.int64) * WORDS + tl.arange(0, 16)[None, :]
    magic = tl.load(magic_ptr + tl.zeros((1, 1), tl.int32))  # a tensor, so that unpacking keeps its operand's layout
    total, acc = tl.zeros((BN, BM), tl.float32), tl.zeros((BN, BM), tl.float32)
    total2, acc2 = total, acc
    for step in range(STEPS):
        slab = tl.program_id(2) * STEPS + step
        words = ws + slab.to(tl.int64) * stride * WORDS
        scales = scales_ptr + slab.to(tl.int64) * (128 // GROUP) * stride + at
        acc, acc2 = add_slab(
            acc, acc2, xs, m_mask, words, words + width * WORDS, scales, scales + width, n_mask, slab * 256, magic,
            stride, IN_SIZE, BITS, GROUP, SILU_MUL, COMPUTE,
        )  # fmt: skip
        if STEPS > CHUNK:  # this program makes all chunks
            ends = (step + 1) % CHUNK == 0
            total, acc = total + tl.where(ends, acc, 0.0), tl.where(ends, 0.0, acc)
            total2, acc2 = total2 + tl.where(ends, acc2, 0.0), tl.where(ends, 0.0, acc2)
    if STEPS == CHUNK:
        total, total2 = acc, acc2
    is_last = True
    if SPLIT > 1:
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        sums = sums_ptr + tile * SPLIT * (2 * BN * BM if SILU_MUL else BN * BM)
        total, total2, is_last = last_sum(total, total2, sums, tickets_ptr + tile, SPLIT, BN, BM, SILU_MUL)
    if is_last:
        finish(total, total2, out_ptr, bias_ptr, m, n, m_mask, width, out_stride, SILU_MUL, HAS_BIAS, ACCUMULATE)


@triton.jit
def _write_out(
    words_ptr, scales_ptr, out_ptr, magic_ptr, first, num_rows, stride, out_stride,
    IN_SIZE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    slab = tl.program_id(1).to(tl.int64)
    n_mask = n < num_rows
    words = words_ptr + (slab * stride + (first + n)[:, None]) * (8 * BITS) + tl.arange(0, 16)[None, :]
    scales = scales_ptr + slab * (128 // GROUP) * stride + first + n
    magic = tl.load(magic_ptr + tl.zeros((1, 1), tl.int32))
    for at in tl.static_range(0, 256, 32):
        if at % (512 // BITS) == 0:
            w = tl.load(words + at * BITS // 32, n_mask[:, None], 0)
        if at % (2 * GROUP) == 0:
            pairs = tl.load(scales + at // (2 * GROUP) * stride, n_mask, 0)
        values = unpack(w, at // 32 % (16 // BITS), BITS, magic, COMPUTE).to(tl.float32)
        values *= scale(pairs, at // GROUP % 2)[:, None]
        k = slab * 256 + at + tl.arange(0, 32)
        place_out = out_ptr + n[:, None].to(tl.int64) * out_stride + k[None, :]
        tl.store(place_out, values.to(out_ptr.dtype.element_ty), n_mask[:, None] & (k < IN_SIZE)[None, :])
