"""Attention over a paged KV cache: ragged, any mix of prompt chunks and single tokens in one call.

The plan, made once a step, cuts the work into pairs of a **query tile** (``tile_tokens`` consecutive tokens of
one row, times the query heads that share a key head: 12 rows, or the heads of one token) and a **key tile** (64
positions of the same sequence, at absolute multiples of 64). Every product has the shape of one
pair, and every reduction over keys goes tile by tile in the order of positions::

    scores[j] = Q K[j]ᵀ          one [M, D] x [D, 64] product per pair
    m         = max over all j   exact in any order
    p[j]      = exp(scores[j] - m)
    sum, out  = Σ_j p[j], Σ_j p[j] V[j]     j ascending, one addition at a time

A key tile that a token may not see has p = 0 exactly, and adding zero changes nothing; so a token's result
does not depend on which others share its tile, on how far the longest of them reaches, on the size of blocks
or on where the prompt was cut. Missing rows of a tile repeat its last token. Positions that no token of the
tile may see are read from the tile's own last token, so that what others left in the cache, were it NaN,
cannot get in.

Query tiles that need about as many key tiles run together as a group, as one batch of products; groups bound
the memory for gathered keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.kernels.reference.elementwise import exp

KEY_TILE = 64
QUERY_ROWS = 12  # as in linear.py
_MIN_PAIRS = 8  # products per batch, at least: see the package's docstring
_MAX_PAIRS = 512  # products per batch, unless a single query tile needs more


@dataclass(frozen=True, slots=True)
class TileGroup:
    """``n`` query tiles that run together, each over ``J`` key tiles. ``M`` rows = tile_tokens * heads per group."""

    query_index: Tensor
    """``[n * num_kv_heads * M]``: rows of the queries seen as ``[T * num_heads, head_dim]``."""
    key_index: Tensor
    """``[J * n * num_kv_heads * 64]``: rows of the cache seen as ``[num_slots * num_kv_heads, head_dim]``."""
    mask: Tensor
    """``[J, n, 1, tile_tokens, 1, 64]`` float32: minus infinity where a token must not see a position, else 0."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All index tensors of one step for one sliding window."""

    groups: tuple[TileGroup, ...]
    num_heads: int
    num_kv_heads: int
    tile_tokens: int


@dataclass(frozen=True, slots=True)
class _QueryTile:
    """``count`` tokens of a row: the first is token ``token`` of the step, at ``position`` of the sequence."""

    row: int
    token: int
    position: int
    count: int
    first_key_tile: int

    @property
    def last_position(self) -> int:
        return self.position + self.count - 1

    @property
    def num_key_tiles(self) -> int:
        return self.last_position // KEY_TILE - self.first_key_tile + 1


def plan_attention(
    starts: Sequence[int],
    counts: Sequence[int],
    block_tables: Tensor,
    *,
    block_size: int,
    window: int | None,
    num_heads: int,
    num_kv_heads: int,
) -> AttentionPlan:
    """Plan one step: row ``i`` computes ``counts[i]`` tokens from position ``starts[i]`` on.

    ``block_tables``: ``[rows, max_blocks]`` int64, padded with anything; the plan lies on its device.
    ``window``: a token sees this many positions, itself included; None: all before it.
    """
    tile_tokens = _tile_tokens(num_heads // num_kv_heads)
    tiles = sorted(_query_tiles(starts, counts, tile_tokens, window), key=lambda tile: -tile.num_key_tiles)
    groups = []
    for members in _grouped(tiles, num_kv_heads):
        numbers = torch.tensor(
            [(t.row, t.token, t.position, t.count, t.first_key_tile) for t in members], device=block_tables.device
        )
        groups.append(
            _index_group(
                numbers,
                members[0].num_key_tiles,
                block_tables,
                block_size,
                window,
                num_heads,
                num_kv_heads,
                tile_tokens,
            )
        )
    return AttentionPlan(tuple(groups), num_heads, num_kv_heads, tile_tokens)


def _tile_tokens(num_groups: int) -> int:
    """Tokens of a query tile: as many as fill 12 rows exactly, or one, whose heads have the same rows always."""
    return QUERY_ROWS // num_groups if QUERY_ROWS % num_groups == 0 else 1


def _query_tiles(
    starts: Sequence[int], counts: Sequence[int], tile_tokens: int, window: int | None
) -> Iterator[_QueryTile]:
    token = 0
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        for offset in range(0, count, tile_tokens):
            position = start + offset
            first_key = 0 if window is None else max(0, position - window + 1)
            yield _QueryTile(row, token + offset, position, min(tile_tokens, count - offset), first_key // KEY_TILE)
        token += count


def _grouped(tiles: list[_QueryTile], num_kv_heads: int) -> Iterator[list[_QueryTile]]:
    """Cut tiles, longest first, into groups of bounded size; the last tile of a small group is repeated."""
    begin = 0
    while begin < len(tiles):
        pairs_per_tile = tiles[begin].num_key_tiles * num_kv_heads
        members = tiles[begin : begin + max(1, _MAX_PAIRS // pairs_per_tile)]
        begin += len(members)
        missing = -(-_MIN_PAIRS // pairs_per_tile) - len(members)
        yield members + members[-1:] * max(0, missing)


def _index_group(
    numbers: Tensor,
    num_key_tiles: int,
    block_tables: Tensor,
    block_size: int,
    window: int | None,
    num_heads: int,
    num_kv_heads: int,
    tile_tokens: int,
) -> TileGroup:
    device = numbers.device
    row, token, position, count, first_key_tile = numbers.unsqueeze(-1).unbind(1)  # each [n, 1]
    num_tiles = numbers.shape[0]
    offsets = torch.minimum(torch.arange(tile_tokens, device=device), count - 1)  # [n, tile_tokens]
    heads = torch.arange(num_heads, device=device).view(1, num_kv_heads, 1, -1)
    query_index = (token + offsets).view(num_tiles, 1, tile_tokens, 1) * num_heads + heads

    query_position = position + offsets
    last = position + count - 1
    key_position = first_key_tile * KEY_TILE + torch.arange(num_key_tiles * KEY_TILE, device=device)  # [n, J * 64]
    unseen = key_position > last
    mask = key_position.unsqueeze(1) > query_position.unsqueeze(2)  # [n, tile_tokens, J * 64]
    if window is not None:
        unseen |= key_position <= position - window
        mask |= key_position.unsqueeze(1) <= query_position.unsqueeze(2) - window
    key_position = torch.where(unseen, last, key_position)

    slots = block_tables[row, key_position // block_size] * block_size + key_position % block_size
    by_key_tile = slots.view(num_tiles, num_key_tiles, 1, KEY_TILE).transpose(0, 1)  # [J, n, 1, 64]
    key_index = by_key_tile * num_kv_heads + torch.arange(num_kv_heads, device=device).view(1, 1, -1, 1)
    mask = mask.view(num_tiles, tile_tokens, num_key_tiles, KEY_TILE).permute(2, 0, 1, 3)
    return TileGroup(
        query_index=query_index.reshape(-1),
        key_index=key_index.reshape(-1),
        mask=torch.zeros(mask.shape, device=device)
        .masked_fill_(mask, float("-inf"))
        .view(num_key_tiles, num_tiles, 1, tile_tokens, 1, KEY_TILE),
    )


def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Softmax(scale q kᵀ) v for every token of the step, in float32.

    ``q``: ``[T, num_heads, head_dim]``; caches: ``[num_slots, num_kv_heads, head_dim]``, in which this step's
    own keys and values stand already. Returns ``[T, num_heads, head_dim]`` in q's dtype.
    """
    head_dim = q.shape[-1]
    queries = q.reshape(-1, head_dim).float() * scale
    keys, values = k_cache.view(-1, head_dim), v_cache.view(-1, head_dim)
    out = torch.empty_like(queries)
    for group in plan.groups:
        out.index_copy_(0, group.query_index, _attend(queries, keys, values, group, plan))
    return out.view(q.shape).to(q.dtype)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, group: TileGroup, plan: AttentionPlan) -> Tensor:
    """One group: ``[n * num_kv_heads * M, head_dim]`` in the order of ``group.query_index``."""
    num_key_tiles, num_tiles, _, tile_tokens, _, _ = group.mask.shape
    head_dim, num_kv_heads = queries.shape[-1], plan.num_kv_heads
    rows = tile_tokens * (plan.num_heads // num_kv_heads)
    batch = num_tiles * num_kv_heads

    q = queries.index_select(0, group.query_index).view(1, batch, rows, head_dim)
    q = q.expand(num_key_tiles, -1, -1, -1).reshape(-1, rows, head_dim)
    k = keys.index_select(0, group.key_index).view(-1, KEY_TILE, head_dim).float()
    scores = torch.bmm(q, k.transpose(1, 2))  # [J * batch, M, 64]
    by_token = scores.view(num_key_tiles, num_tiles, num_kv_heads, tile_tokens, -1, KEY_TILE)
    by_token += group.mask

    scores = scores.view(num_key_tiles, batch, rows, KEY_TILE)
    highest = scores.amax(dim=-1, keepdim=True).amax(dim=0, keepdim=True)
    p = exp(scores - highest)
    v = values.index_select(0, group.key_index).view(-1, KEY_TILE, head_dim).float()
    weighted = torch.bmm(p.view(-1, rows, KEY_TILE), v).view(num_key_tiles, batch, rows, head_dim)
    total = _sum_in_order(p.sum(dim=-1, keepdim=True))
    return (_sum_in_order(weighted) / total).view(-1, head_dim)


def _sum_in_order(parts: Tensor) -> Tensor:
    """Sum over the first dimension, one part after the other."""
    first, *rest = parts.unbind(0)
    total = first.clone() if rest else first
    for part in rest:
        total += part
    return total
