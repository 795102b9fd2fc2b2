"""A step plan in the making: columns that grow row by row, and shrink when a row's sequence has to leave."""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.core.sequence import Sequence
from tokenmill.core.step import NewSequence
from tokenmill.engine.kvcache.manager import BlockUpdate


class PlanDraft:
    """The columns of a plan in the making."""

    __slots__ = ("counts", "new", "rows", "starts", "updates")

    def __init__(self) -> None:
        self.rows: list[Sequence] = []
        self.starts: list[int] = []
        self.counts: list[int] = []
        self.new: dict[int, NewSequence] = {}
        self.updates: dict[int, BlockUpdate] = {}

    def add(self, seq: Sequence, count: int) -> None:
        """Put the next ``count`` tokens of ``seq`` into the step; the last known one brings a new token."""
        self.rows.append(seq)
        self.starts.append(seq.num_planned)
        self.counts.append(count)
        seq.num_planned += count
        if seq.num_planned == seq.num_tokens + seq.num_pending:
            seq.num_pending += 1

    def remove(self, seq: Sequence) -> None:
        """``seq`` leaves the batch: whatever it had got in this step is void."""
        self.updates.pop(seq.seq_id, None)
        self.new.pop(seq.seq_id, None)
        if seq in self.rows:
            i = self.rows.index(seq)
            del self.rows[i], self.starts[i]
            del self.counts[i : i + 1]  # nothing while generating rows are laid: their counts follow, all 1


KEPT = 3
"""A long prompt keeps one part in so many of a step's room; the rest is for short ones, if there are any."""


def left_to_short(room: int, others: Iterable[Sequence]) -> int:
    """Of the ``room`` that a long prompt would take whole: what it leaves to those of ``others`` that are done with it.

    So a prompt of many steps holds up neither those who were taken up after it nor the head of the queue,
    if they are short; long prompts still come one after the other, which is the quickest for all of them.
    """
    part = room - max(1, room // KEPT)
    return part if any(0 < seq.num_remaining <= part for seq in others) else 0
