"""``rms_norm``: x / sqrt(mean(x²) + eps) * weight (arXiv 1910.07467), with the residual added on the way.

Bound by memory: every number is read once and written once. A program holds whole rows in registers, so the mean needs
no second read; small rows share a program. How a row is laid over threads depends on its width alone, and so do its
bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MAX_WIDTH = 32768
"""The widest row that a program can hold."""


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    residual: Tensor | None = None,
    num_tokens: Tensor | None = None,
) -> None:
    """Normalise ``x [T, H]`` with ``weight [H]`` into ``out [T, H]``, in float32, rounded once.

    Args:
        residual: ``[T, H]``: ``residual += x`` first, and that (as rounded to its dtype) is what is normalised.
        num_tokens: int32 ``[1]`` on the device: rows from this one on are left alone.
    """
    num_rows, width = x.shape
    if width > MAX_WIDTH:
        raise ValueError(f"rms_norm of rows of {width}; at most {MAX_WIDTH}")
    columns = triton.next_power_of_2(width)
    rows = max(1, 1024 // columns)
    _rms_norm[(triton.cdiv(num_rows, rows),)](
        x, weight, out, residual, num_tokens, eps, num_rows, width, x.stride(0), out.stride(0),
        0 if residual is None else residual.stride(0),
        ROWS=rows, COLUMNS=columns, num_warps=4 if columns <= 1024 else 8 if columns <= 8192 else 16,
    )  # fmt: skip


@triton.jit
def _rms_norm(
    x, weight, out, residual, num_tokens, eps, num_rows, width, x_stride, out_stride, residual_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if num_tokens is not None:
        num_rows = tl.minimum(num_rows, tl.load(num_tokens))
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    mask = (row < num_rows) & (column < width)
    values = tl.load(x + row * x_stride + column, mask, 0.0).to(tl.float32)
    if residual is not None:
        at = residual + row * residual_stride + column
        sums = (values + tl.load(at, mask, 0.0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(at, sums, mask)
        values = sums.to(tl.float32)
    mean_square = tl.sum(values * values, 1) / width
    scaled = values / tl.sqrt_rn(mean_square + eps)[:, None]
    factors = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, (scaled * factors).to(out.dtype.element_ty), mask)
