"""``linear``: y = x Wᵀ + b, in tiles of 12 rows by a part of the columns.

A tile is a batched product ``[parts, 12, K] x [parts, K, N / parts]``; the last tile's missing rows are zeros.
``parts`` depends on N alone; a matrix too narrow to cut is multiplied twice, since a batch of one is what must
not be (see the package's docstring). Twelve rows, because MKL's register tiles are 6 rows high in AVX2 code and
4 or 8 in SSE code: no row is a remainder.

Measured with MKL's SSE4.2, AVX2 and AVX-512 code at 1 to 16 threads: bits independent of a row's place, its
company and the number of threads. A plain product changes bits with the number of rows (any of 1, 2, 3, 5, 6, 7
against 16), with the number of threads, and in AVX2 code with the place of a row among 8 or, at 2 threads, 16;
in SSE code among 4 or 6.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

TILE_ROWS = 12
_MAX_PARTS = 64
_MIN_COLUMNS = 256  # narrower products take a path of MKL that is several times slower


@lru_cache(maxsize=256)
def _num_parts(num_columns: int) -> int:
    """Into how many equal parts the columns are cut; 1 where they cannot be."""
    most = min(_MAX_PARTS, num_columns // _MIN_COLUMNS)
    return next((parts for parts in range(most, 1, -1) if num_columns % parts == 0), 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``[T, K]`` times ``weight [N, K]`` transposed, plus ``bias [N]``: ``[T, N]``."""
    num_rows, num_columns = x.shape[0], weight.shape[0]
    parts = _num_parts(num_columns)
    if parts == 1:
        batched = weight.t().expand(2, -1, -1)
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
