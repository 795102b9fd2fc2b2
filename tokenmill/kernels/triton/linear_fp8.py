"""Products in FP8 (e4m3): a scale per output of the matrix, one per row of what it is multiplied with.

The rows are quantised as they come, each by its own largest number: ``quantize_rows``, one pass over ``x``. Half the
bytes of bf16 cross the memory where rows are few, and the tensor cores do twice as much a second where they are many.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton.device import has_native_e4m3
from tokenmill.kernels.triton.fp8 import encode_e4m3
from tokenmill.kernels.triton.linear_plain import linear_plain
from tokenmill.kernels.triton.quantize import Fp8Weight
from tokenmill.kernels.triton.tiles import workspace


def quantize_rows(x: Tensor, codes: Tensor, scales: Tensor) -> None:
    """``x [T, K]`` to ``codes [T, K]`` (uint8, e4m3) by ``scales [T]`` (float32); a row of zeros has the scale 0."""
    num_rows, width = x.shape
    if num_rows:
        columns = min(triton.next_power_of_2(width), 4096)
        _quantize_rows[num_rows,](
            x, codes, scales, x.stride(0), codes.stride(0), WIDTH=width, COLUMNS=columns, NATIVE=has_native_e4m3(),
            num_warps=8 if columns > 1024 else 4,
        )  # fmt: skip


def linear_fp8(
    x: Tensor,
    weight: Fp8Weight,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    accumulate: bool = False,
    silu_mul: bool = False,
) -> None:
    """The product by the kernel, a row's bits independent of the others; see ``linear`` for the arguments."""
    space = workspace(x.device)
    width = x.shape[1]
    most = min(len(space.plain) // width, len(space.row_scales))
    for begin in range(0, len(x), most):
        rows = slice(begin, min(begin + most, len(x)))
        num = rows.stop - begin
        codes, scales = space.plain[: num * width].view(num, width), space.row_scales[:num]
        quantize_rows(x[rows], codes, scales)
        linear_plain(codes, weight, out[rows], x_scales=scales, bias=bias, accumulate=accumulate, silu_mul=silu_mul)


@triton.jit
def _quantize_rows(
    x_ptr, codes_ptr, scales_ptr, x_stride, codes_stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    largest = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(0, WIDTH, COLUMNS):
        x = tl.load(x_ptr + row * x_stride + begin + column, begin + column < WIDTH, 0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)
    scale = tl.max(largest, 0) / 448.0
    tl.store(scales_ptr + row, scale)
    inverse = tl.where(scale > 0.0, 1.0 / scale, 0.0)
    for begin in range(0, WIDTH, COLUMNS):  # again, now from the cache
        x = tl.load(x_ptr + row * x_stride + begin + column, begin + column < WIDTH, 0.0).to(tl.float32)
        tl.store(
            codes_ptr + row * codes_stride + begin + column, encode_e4m3(x * inverse, NATIVE), begin + column < WIDTH
        )
