"""Poison, for tests: KV blocks are NaN until they are written.

The pool starts as nothing but NaN, and a block that a plan gives to a sequence for positions not computed yet is
filled with NaN before the step. A read of a slot that was never written, or that still holds what another
sequence left, then turns the logits to NaN and the row into an error.
"""

from __future__ import annotations

from collections import Counter

from tokenmill.core.step import StepPlan
from tokenmill.runtime.table import SequenceTable


def fresh_blocks(plan: StepPlan, table: SequenceTable, block_size: int) -> set[int]:
    """Blocks that this plan gives to a sequence for positions beyond what is computed, and that no other holds.

    ``table`` is already updated with the plan. A prefix from the cache, a block shared with a sibling and the
    destination of a copy are not fresh.
    """
    starts = dict(zip(plan.seq_ids, plan.starts, strict=True))
    given = {new.seq_id: 0 for new in plan.new} | {s: index for s, (index, _) in plan.block_updates.items()}
    holders = Counter(block_id for entry in table.entries.values() for block_id in entry.block_ids)
    copied = {destination for _, destination in plan.copies}
    fresh: set[int] = set()
    for seq_id, first in given.items():
        first = max(first, -(-starts.get(seq_id, 0) // block_size))
        fresh.update(b for b in table.entries[seq_id].block_ids[first:] if holders[b] == 1 and b not in copied)
    return fresh
