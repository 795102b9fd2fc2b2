"""Products with a matrix that the tensor cores take as it lies: plain floats, or FP8 by FP8 with scales afterwards.

``tiles.py`` says in what order sums are made and how a program finds its rows. In FP8 (e4m3) Hopper's tensor cores keep
few bits of a running sum, so a sum is handed over to float32 every ``STEP`` inputs; the scales, one per output and one
per row of x, multiply what comes out. Where there is no FP8 (older chips, Triton's interpreter) the codes are decoded
first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton.device import has_native_e4m3
from tokenmill.kernels.triton.fp8 import decode_e4m3
from tokenmill.kernels.triton.quantize import Fp8Weight
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

RUN = 256
"""Inputs that a chunk is made of runs of."""
TILES: dict[tuple[int, bool], dict[int, Tile]] = {
    (2, False): {16: Tile(16, 64, 4, 4), 64: Tile(64, 64, 4, 4), 128: Tile(128, 128, 8, 3)},
    (2, True): {16: Tile(16, 64, 4, 4), 64: Tile(64, 64, 4, 4), 128: Tile(128, 64, 8, 3)},
    (1, False): {16: Tile(16, 64, 4, 4), 64: Tile(64, 64, 4, 4), 128: Tile(128, 128, 8, 3)},
    (1, True): {16: Tile(16, 64, 4, 4), 64: Tile(64, 64, 4, 4), 128: Tile(128, 64, 8, 3)},
    (4, False): {16: Tile(16, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 4, 2)},
    (4, True): {16: Tile(16, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 4, 2)},
}
"""By bytes of a weight and whether gate and up are joined; then by the most rows. For Hopper, and sane elsewhere."""
STEPS = {1: 128, 2: 64, 4: 32}
"""Inputs that one turn of the loop takes, by bytes of a weight: 128 bytes of a row."""


def linear_plain(
    x: Tensor,
    weight: Tensor | Fp8Weight,
    out: Tensor,
    *,
    x_scales: Tensor | None = None,
    bias: Tensor | None = None,
    accumulate: bool = False,
    silu_mul: bool = False,
    groups: Groups | None = None,
) -> None:
    """The product by the kernel; see ``linear`` for the arguments.

    ``x_scales``: float32 ``[rows]`` of ``x`` in codes, uint8, for a weight in FP8. ``groups``: of experts.
    """
    values = weight.codes if isinstance(weight, Fp8Weight) else weight.view(-1, weight.shape[-1])
    in_size, size = values.shape[1], values.element_size()
    width = (len(values) if groups is None else len(values) // groups.num_experts) // (2 if silu_mul else 1)
    num_rows = len(x) if groups is None else groups.num_rows
    if num_rows == 0:
        return
    tiles = TILES[size, silu_mul]
    small = num_rows <= SMALL_ROWS
    tile = tiles[groups.tile_rows if groups is not None else 16 if num_rows <= 16 else 64 if small else 128]
    num_runs = triton.cdiv(in_size, RUN)
    num_chunks = 1 if groups is not None else chunks(num_runs, triton.cdiv(width, tiles[16].outputs))
    split = num_chunks if small else 1
    native = size == 1 and has_native_e4m3()
    if native:
        x, values = x.view(torch.float8_e4m3fn), values.view(torch.float8_e4m3fn)
    space, step = workspace(x.device), STEPS[size]
    num_row_tiles = triton.cdiv(num_rows, tile.rows) if groups is None else groups.num_tiles
    _kernel[num_row_tiles, triton.cdiv(width, tile.outputs), split](
        x, values, out, bias, x_scales, weight.scales if isinstance(weight, Fp8Weight) else None,
        None if groups is None else groups.experts, None if groups is None else groups.pairs, space.sums, space.tickets,
        num_rows, width, x.stride(0), values.stride(0), out.stride(0),
        IN_SIZE=in_size, STEPS=num_runs // split * (RUN // step), CHUNK=num_runs // num_chunks * (RUN // step),
        SPLIT=split, BM=tile.rows, BN=tile.outputs, BK=step, SILU_MUL=silu_mul, HAS_BIAS=bias is not None,
        ACCUMULATE=accumulate, SHARE=0 if groups is None else groups.share, EIGHT=size == 1, NATIVE=native,
        COMPUTE=tl.float8e4nv if native else compute_type(values), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit
def _operand(values, EIGHT: tl.constexpr, COMPUTE: tl.constexpr):
    """What was loaded, as the product takes it."""
    if EIGHT and COMPUTE != tl.float8e4nv:  # noqa: SIM300
        values = decode_e4m3(values, False)
    return values.to(COMPUTE)


@triton.jit
def _kernel(
    x_ptr, w_ptr, out_ptr, bias_ptr, x_scales_ptr, w_scales_ptr, experts_ptr, pairs_ptr, sums_ptr, tickets_ptr,
    num_rows, width, x_stride, w_stride, out_stride,
    IN_SIZE: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, SILU_MUL: tl.constexpr, HAS_BIAS: tl.constexpr, ACCUMULATE: tl.constexpr,
    SHARE: tl.constexpr, EIGHT: tl.constexpr, NATIVE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    m, source, m_mask, expert = place(experts_ptr, pairs_ptr, num_rows, BM, SHARE)
    if SHARE > 0:  # noqa: SIM102 - known when compiling, unlike the other
        if expert < 0:
            return
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    n_mask = n < width
    first = expert * width * (2 if SILU_MUL else 1)  # of this expert's rows
    xs = x_ptr + source[None, :].to(tl.int64) * x_stride + tl.arange(0, BK)[:, None]
    ws = w_ptr + (first + n)[:, None].to(tl.int64) * w_stride + tl.arange(0, BK)[None, :]
    total, acc = tl.zeros((BN, BM), tl.float32), tl.zeros((BN, BM), tl.float32)
    total2, acc2 = total, acc
    for step in range(STEPS):
        k = (tl.program_id(2) * STEPS + step) * BK
        if IN_SIZE % (BK * STEPS * SPLIT) == 0:
            k_mask = tl.full((BK,), True, tl.int1)
        else:
            k_mask = k + tl.arange(0, BK) < IN_SIZE
        x = _operand(tl.load(xs + k, m_mask[None, :] & k_mask[:, None], 0.0), EIGHT, COMPUTE)
        w = _operand(tl.load(ws + k, n_mask[:, None] & k_mask[None, :], 0.0), EIGHT, COMPUTE)
        if EIGHT:
            acc += tl.dot(w, x, input_precision="ieee")
        else:
            acc = tl.dot(w, x, acc, input_precision="ieee")
        if SILU_MUL:
            w2 = tl.load(ws + width.to(tl.int64) * w_stride + k, n_mask[:, None] & k_mask[None, :], 0.0)
            if EIGHT:
                acc2 += tl.dot(_operand(w2, EIGHT, COMPUTE), x, input_precision="ieee")
            else:
                acc2 = tl.dot(_operand(w2, EIGHT, COMPUTE), x, acc2, input_precision="ieee")
        if STEPS > CHUNK:  # noqa: SIM102 - this program makes all chunks
            if (step + 1) % CHUNK == 0:
                total += acc
                acc = tl.zeros((BN, BM), tl.float32)
                if SILU_MUL:
                    total2 += acc2
                    acc2 = tl.zeros((BN, BM), tl.float32)
    if STEPS == CHUNK:
        total, total2 = acc, acc2
    is_last = True
    if SPLIT > 1:
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        sums = sums_ptr + tile * SPLIT * (2 * BN * BM if SILU_MUL else BN * BM)
        total, total2, is_last = last_sum(total, total2, sums, tickets_ptr + tile, SPLIT, BN, BM, SILU_MUL)
    if is_last:
        if EIGHT:
            by_row = tl.load(x_scales_ptr + source, m_mask, 0.0)[None, :]
            total *= by_row * tl.load(w_scales_ptr + first + n, n_mask, 0.0)[:, None]
            if SILU_MUL:
                total2 *= by_row * tl.load(w_scales_ptr + first + width + n, n_mask, 0.0)[:, None]
        finish(
            total, total2, out_ptr, bias_ptr, m, n, m_mask, width, out_stride, SILU_MUL, HAS_BIAS, ACCUMULATE
        )  # fmt: skip
