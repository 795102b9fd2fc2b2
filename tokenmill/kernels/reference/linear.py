"""``linear``: y = x Wᵀ + b, in tiles of 16 rows by a fraction of the columns.

A tile is a batched product ``[parts, 16, K] x [parts, K, N / parts]``; the last tile's missing rows are zeros.
``parts`` depends on N alone. See the package's docstring for why a batch. Measured with MKL's AVX2 and AVX-512
code at 1 and 2 threads: bits independent of row, company and number of threads, where a plain product of 16
rows changes bits with the row's position (AVX2, 2 threads, N 64) and with the number of threads.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

TILE_ROWS = 16
_MAX_PARTS = 64
_MIN_COLUMNS = 16


@lru_cache(maxsize=256)
def _num_parts(num_columns: int) -> int:
    """Into how many equal parts the columns are split; 1 where they cannot be."""
    most = min(_MAX_PARTS, num_columns // _MIN_COLUMNS)
    return next((parts for parts in range(most, 1, -1) if num_columns % parts == 0), 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``[T, K]`` times ``weight [N, K]`` transposed, plus ``bias [N]``: ``[T, N]``."""
    num_rows, num_columns = x.shape[0], weight.shape[0]
    parts = _num_parts(num_columns)
    if parts == 1:
        batched = weight.t().expand(2, -1, -1)  # twice the same: a batch of one is what must not be
    else:
        batched = weight.view(parts, num_columns // parts, -1).transpose(1, 2)
    out = x.new_empty(num_rows, num_columns)
    for begin in range(0, num_rows, TILE_ROWS):
        tile = x[begin : begin + TILE_ROWS]
        rows = tile.shape[0]
        if rows < TILE_ROWS:
            tile = torch.cat((tile, tile.new_zeros(TILE_ROWS - rows, tile.shape[1])))
        product = torch.bmm(tile.expand(batched.shape[0], -1, -1), batched)[:parts, :rows]
        out[begin : begin + rows].view(rows, parts, -1).copy_(product.transpose(0, 1))
    return out if bias is None else out.add_(bias)
