"""``take_in``: what a step's inputs say, applied on the device before the first layer.

Tokens that the host does not know yet, because a step in flight draws them, come as ``-(slot + 1)`` and are looked up
in the list of tokens drawn last. Block tables come as changes: entry ``places[i]`` becomes ``blocks[i]``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def take_in(token_ids: Tensor, last_tokens: Tensor, places: Tensor, blocks: Tensor, tables: Tensor) -> None:
    """Resolve ``token_ids`` int32 ``[T]`` in place, and change ``tables``.

    Args:
        last_tokens: int32 ``[slots]``.
        places: int32 ``[U]``: index into the flattened ``tables``; -1: padding. Distinct.
        blocks: int32 ``[U]``.
        tables: int32, contiguous.
    """
    num_tokens, num_changes = len(token_ids), len(places)
    _take_in[(triton.cdiv(max(num_tokens, num_changes), _BLOCK),)](
        token_ids, last_tokens, places, blocks, tables, num_tokens, num_changes, BLOCK=_BLOCK, num_warps=4
    )


@triton.jit
def _take_in(token_ids, last_tokens, places, blocks, tables, num_tokens, num_changes, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(token_ids + at, at < num_tokens, 0)
    unknown = token < 0
    drawn = tl.load(last_tokens + (-token - 1), unknown, 0)
    tl.store(token_ids + at, drawn, unknown)
    place = tl.load(places + at, at < num_changes, -1)
    block = tl.load(blocks + at, at < num_changes, 0)
    tl.store(tables + place, block, place >= 0)
