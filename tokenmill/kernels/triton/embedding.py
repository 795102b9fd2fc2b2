"""``embedding``: rows of a table by token id. A token that the table lacks (-1: there is none) is a row of zeros."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024  # of a program: 16 bytes of bf16 a thread


def embedding(token_ids: Tensor, table: Tensor, out: Tensor, num_tokens: Tensor | None = None) -> None:
    """``out[i] = table[token_ids[i]]``: int32 ``[T]``, ``[V, H]``, ``[T, H]``.

    ``num_tokens``: int32 ``[1]`` on the device: rows from this one on are left alone.
    """
    num_rows, width = out.shape
    _embedding[(triton.cdiv(width, _COLUMNS), num_rows)](
        token_ids, table, out, num_tokens, table.shape[0], width, table.stride(0), out.stride(0),
        COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip


@triton.jit
def _embedding(
    token_ids, table, out, num_tokens, vocab_size, width, table_stride, out_stride, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    if num_tokens is not None:
        mask &= row < tl.load(num_tokens)
    token = tl.load(token_ids + row).to(tl.int64)
    known = (token >= 0) & (token < vocab_size)
    values = tl.load(table + token * table_stride + column, mask & known, 0.0)
    tl.store(out + row.to(tl.int64) * out_stride + column, values.to(out.dtype.element_ty), mask)
