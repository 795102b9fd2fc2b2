"""The worker's sequence table: what plans have told it so far, and the tokens it drew itself.

Plans tell deltas (``core/step.py``), so the table after a plan depends on all plans before it; it is changed
here and nowhere else. A sequence that failed stays until it is dropped: plans made before its failure was known
still name it, and its rows are passed over.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenmill.core.params import SamplingParams
from tokenmill.core.step import NewSequence, StepPlan
from tokenmill.engine.contracts import Grammars
from tokenmill.engine.faults import fire
from tokenmill.runtime.pooling import Pooled
from tokenmill.runtime.sampling import SampledSequence

UNKNOWN = -1
"""A token that is drawn, or will be, by a step in flight."""


@dataclass(slots=True)
class TableEntry:
    """A sequence as the worker knows it."""

    token_ids: list[int]
    """Known tokens: told by the plan that brought the sequence, then drawn here. ``UNKNOWN`` holds the place of one
    that a device is about to draw."""
    block_ids: array[int]
    """32-bit, so that kernels may read it where it lies."""
    sampling: SampledSequence
    """How its tokens are chosen; shares ``token_ids``."""
    failed: bool = False
    pooled: Pooled | None = None
    """The embedding that it becomes, if that is what is wanted of it; then no token is drawn."""
    slot: int = 0
    """Its place in what a model keeps per sequence: below the number of sequences known, and its own while it lives."""
    num_shown: int = 0
    """Leading entries of ``block_ids`` that a model which keeps block tables has seen."""

    @classmethod
    def from_new(cls, new: NewSequence, vocab_size: int, grammars: Grammars | None = None) -> TableEntry:
        token_ids = list(new.token_ids)
        sampling = SampledSequence(
            token_ids, new.prompt_len, new.params, new.seed, new.stop_token_ids, vocab_size, grammars
        )
        pooled = None if new.pooling is None else Pooled(new.pooling, len(token_ids))
        return cls(token_ids, array("i", new.block_ids), sampling, pooled=pooled)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a plan with its sequence: compute ``token_ids[start:end]``."""

    seq_id: int
    entry: TableEntry
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """It reaches the last token known, so the next one can be drawn, where tokens are wanted."""
        return self.end == len(self.entry.token_ids) and self.entry.pooled is None


class SequenceTable:
    """Sequences by ``seq_id``."""

    def __init__(self, vocab_size: int, grammars: Grammars | None = None) -> None:
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._free_slots: list[int] = []
        self.entries: dict[int, TableEntry] = {}

    def update(self, plan: StepPlan, refuse: Callable[[int, Exception], None]) -> None:
        """Forget, take in, and change block tables, as the plan says.

        Args:
            refuse: told of a sequence that cannot be prepared, and why; it is kept as one that failed.
        """
        for seq_id in plan.dropped:
            self._free_slots.append(self.entries.pop(seq_id).slot)
        for new in plan.new:
            assert new.seq_id not in self.entries, f"sequence {new.seq_id} is new but known"
            slot = self._free_slots.pop() if self._free_slots else len(self.entries)
            try:
                fire("worker.prepare", new, tokens=lambda: new.token_ids)  # noqa: B023 (called at once)
                self.entries[new.seq_id] = TableEntry.from_new(new, self._vocab_size, self._grammars)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is told, and costs one request)
                plain = new._replace(params=SamplingParams(), pooling=None)
                self.entries[new.seq_id] = TableEntry.from_new(plain, self._vocab_size)
                self.entries[new.seq_id].failed = True
                refuse(new.seq_id, error)
            self.entries[new.seq_id].slot = slot
        for seq_id, (index, block_ids) in plan.block_updates.items():
            entry = self.entries[seq_id]
            entry.block_ids[index:] = array("i", block_ids)
            entry.num_shown = min(entry.num_shown, index)

    def slots(self, seq_ids: Iterable[int]) -> list[int]:
        """Where these sequences are."""
        return [self.entries[seq_id].slot for seq_id in seq_ids]

    def rows(self, plan: StepPlan) -> list[Row]:
        """The plan's rows without those of failed sequences."""
        rows = []
        for seq_id, start, count in zip(plan.seq_ids, plan.starts, plan.counts, strict=True):
            entry = self.entries[seq_id]
            if not entry.failed:
                assert start + count <= len(entry.token_ids), f"sequence {seq_id}: token {start + count} is not known"
                rows.append(Row(seq_id, entry, start, start + count))
        return rows
