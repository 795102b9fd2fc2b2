"""Cutting the attention of one step into work items, on the host: numpy only, a few dozen operations a step.

**Query tiles.** A row's tokens are cut into tiles: *decode tiles* of as many tokens as fill a matrix instruction's 16
rows with the heads of their group, or *prefill tiles* of 128 rows. Rows that fit into one decode tile, and rows that
must be invariant, use decode tiles.

**The tree over keys.** A decode tile's keys are a tree at absolute positions: leaves of 256 keys, spans of four leaves,
the row. The kernel computes any branch with the same bits, and so does the merging of branches computed apart
(``attention_kernels.py``). So the plan may cut a row into leaves, into spans or not at all, as fills the chip best in
this company, and no bit of the result tells which it was. A prefill tile is one branch unless there are too
few of them; where it is cut, its last bits tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAF = 256
"""Keys per leaf."""
SPAN = 1024
"""Keys per span."""
UNCUT = 1 << 40
"""Keys per part of a row that is not cut."""
HEADER = 8
ITEM = 8
"""Numbers of the header, and of an item or a merge (``attention_kernels.py`` names them)."""

Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cutting depends on besides the step."""

    num_kv_heads: int
    window: int | None
    decode_tokens: int
    """Tokens of a decode tile."""
    prefill_tokens: int
    """Tokens of a prefill tile."""
    decode_programs: int
    prefill_programs: int
    num_multiprocessors: int
    num_slots: int
    """Partial results of one token (all heads) that there is memory for."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Query tiles; every field ``[n]``."""

    token: Ints
    num_tokens: Ints
    table_row: Ints
    position: Ints

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, which: Ints | NDArray[np.bool_]) -> Tiles:
        return Tiles(self.token[which], self.num_tokens[which], self.table_row[which], self.position[which])

    @property
    def end(self) -> Ints:
        """First position after the last key that a tile sees."""
        return self.position + self.num_tokens

    def begin(self, window: int | None) -> Ints:
        """First key of the first leaf that a tile sees."""
        if window is None:
            return np.zeros_like(self.position)
        return np.maximum(self.position - window + 1, 0) // LEAF * LEAF


def tile(starts: Ints, counts: Ints, table_rows: Ints, tokens_per_tile: Ints) -> Tiles:
    """Rows cut into tiles, in order; a row without tokens has none."""
    if (counts == 1).all():
        return Tiles(np.arange(len(counts)), counts, table_rows, starts)
    num_tiles = -(-counts // tokens_per_tile)
    row = np.repeat(np.arange(len(counts)), num_tiles)
    offset = (np.arange(len(row)) - (np.cumsum(num_tiles) - num_tiles)[row]) * tokens_per_tile[row]
    first_token = np.cumsum(counts) - counts
    left = counts[row] - offset
    return Tiles(
        first_token[row] + offset, np.minimum(left, tokens_per_tile[row]), table_rows[row], starts[row] + offset
    )


def decode_units(begin: Ints, end: Ints, shape: Shape) -> Ints:
    """Keys per part of each decode tile: leaves, spans or everything."""
    leaves = (end - begin + LEAF - 1) // LEAF
    share = leaves.sum() * shape.num_kv_heads / shape.decode_programs
    num_spans = ((end - 1) // SPAN - begin // SPAN + 1).sum()
    fill = num_spans * shape.num_kv_heads >= 1.75 * shape.num_multiprocessors
    return np.where(leaves * 3 <= share, UNCUT, SPAN if fill else LEAF)


def prefill_units(begin: Ints, end: Ints, shape: Shape) -> Ints:
    """Keys per part of each prefill tile: everything, unless there are fewer tiles than multiprocessors."""
    num_items = max(1, len(begin) * shape.num_kv_heads)
    if num_items >= shape.num_multiprocessors:
        return np.full_like(begin, UNCUT)
    pieces = -(-shape.num_multiprocessors // num_items)
    unit: Ints = np.maximum(-(-(end - begin) // pieces) + SPAN - 1, SPAN) // SPAN * SPAN
    return unit


def cut(tiles: Tiles, begin: Ints, unit: Ints, first_slot: int, num_slots: int) -> tuple[Numbers, Numbers, int]:
    """Items ``[n, 8]``, merges ``[m, 8]`` and the first slot left; parts lie at multiples of ``unit``.

    Tiles for whose parts there are no slots are not cut; the earlier in the list, the sooner they get theirs.
    """
    end, first = tiles.end, begin // unit
    num_parts = (end - 1) // unit - first + 1
    needed = np.where(num_parts > 1, num_parts * tiles.num_tokens, 0)
    after = np.cumsum(needed)
    if len(after) and after[-1] > num_slots - first_slot:
        unit = np.where(after > num_slots - first_slot, UNCUT, unit)
        first = begin // unit
        num_parts = (end - 1) // unit - first + 1
        needed = np.where(num_parts > 1, num_parts * tiles.num_tokens, 0)
        after = np.cumsum(needed)
    if not len(after) or after[-1] == 0:
        items = _items(tiles, begin, end, np.full_like(begin, -1))
        return items, np.zeros((0, ITEM), dtype=np.int32), first_slot
    slot = np.where(num_parts > 1, first_slot + after - needed, -1)

    which = np.repeat(np.arange(len(tiles)), num_parts)
    part = np.arange(len(which)) - (np.cumsum(num_parts) - num_parts)[which]
    step = unit[which]
    key = (first[which] + part) * step
    part_slot = np.where(slot[which] < 0, -1, slot[which] + part * tiles.num_tokens[which])
    parts = tiles[which]
    items = _items(parts, np.maximum(begin[which], key), np.minimum(end[which], key + step), part_slot)

    merged = np.flatnonzero(num_parts > 1)
    which = np.repeat(merged, tiles.num_tokens[merged])
    token = np.arange(len(which)) - np.repeat(
        np.cumsum(tiles.num_tokens[merged]) - tiles.num_tokens[merged], tiles.num_tokens[merged]
    )
    merges = np.zeros((len(which), ITEM), dtype=np.int32)
    merges[:, 0] = tiles.token[which] + token
    merges[:, 1] = slot[which] + token
    merges[:, 2] = tiles.num_tokens[which]
    merges[:, 3] = num_parts[which]
    merges[:, 4] = first[which]
    merges[:, 5] = np.maximum(SPAN // unit[which], 1)
    return items, merges, first_slot + int(after[-1])


def _items(tiles: Tiles, begin: Ints, end: Ints, slot: Ints) -> Numbers:
    items = np.zeros((len(tiles), ITEM), dtype=np.int32)
    fields = (tiles.token, tiles.num_tokens, tiles.table_row, tiles.position, begin, end, slot)
    for number, field in enumerate(fields):
        items[:, number] = field
    return items
