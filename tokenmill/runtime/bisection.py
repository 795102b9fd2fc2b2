"""What a step brings, row by row, and how a step that raises is computed all the same.

A step computes many rows at once, so an exception in it names none of them. But every row is a function of its own
tokens and KV alone, bit for bit, and to compute it twice changes nothing: the same keys and values are written to
the same slots. So the rows of a step that raised are computed again in halves, and halves of halves, until the row
at fault stands alone. It fails; the others get the tokens that they would have had::

    ■■■■■■■■ raises ─┬─ ■■■■ ok
                     └─ ■■■■ raises ─┬─ ■■ ok
                                     └─ ■■ raises ─┬─ ■ ok
                                                   └─ ■ raises, and again: this request is at fault

Where memory was short, halves need less of it: a row that finds none alone is cut by tokens, down to one. What failed
once and works the second time hurt nobody.

If one sequence after the other cannot be computed, and none can, it is the machine or this program that is broken and
not a request: the exception goes up, and the engine ends. So it does at once where a GPU reports an error: after one,
nothing in this process can use it any more.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from tokenmill.core.errors import OutOfMemory, PoisonRequest
from tokenmill.core.step import TokenLogprobs
from tokenmill.runtime.table import Row

log = logging.getLogger(__name__)

MAX_BARREN = 8
"""So many different sequences, with none between that could be computed, and the machine is taken to be broken. The
same one, sent again and again, counts once."""

DEVICE_ERRORS = ("CUDA error", "HIP error", "Triton Error [CUDA]", "Triton Error [HIP]", "CUBLAS_STATUS_")
"""What the messages of errors hold that a GPU reports."""


@dataclass(slots=True)
class Outcome:
    """The columns of a ``StepResult`` under construction."""

    seq_ids: list[int] = field(default_factory=list)
    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[int, tuple[TokenLogprobs, ...]]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    error_codes: dict[int, str] = field(default_factory=dict)
    embeddings: dict[int, bytes] = field(default_factory=dict)

    def fail(self, row: Row, reason: str, code: str | None = None) -> None:
        """The row brings an error and nothing else; ``code``: see ``StepResult.error_codes``."""
        row.entry.failed = True
        self._tell(row.seq_id, reason, code)

    def refuse(self, seq_id: int, error: Exception) -> None:
        """A sequence could not even be taken in."""
        log.error("sequence %d cannot be prepared", seq_id, exc_info=error)
        self._tell(seq_id, "the request cannot be prepared for sampling", PoisonRequest.code)

    def _tell(self, seq_id: int, reason: str, code: str | None) -> None:
        self.errors[seq_id] = reason
        if code is not None:
            self.error_codes[seq_id] = code

    def add(self, other: Outcome) -> None:
        """Take in what other rows of the same step, or further tokens of the same rows, brought."""
        self.seq_ids += other.seq_ids
        self.token_ids += other.token_ids
        self.logprobs |= other.logprobs
        self.errors |= other.errors
        self.error_codes |= other.error_codes
        self.embeddings |= other.embeddings
        for seq_id, (first, entries) in other.prompt_logprobs.items():
            position, before = self.prompt_logprobs.get(seq_id, (first, ()))
            self.prompt_logprobs[seq_id] = (position, before + entries)


Compute = Callable[[list[Row], Outcome], None]


class DeviceFailed(RuntimeError):
    """A GPU failed under this process, whose rows are not at fault."""


@contextmanager
def telling_device_failures() -> Iterator[None]:
    """Raise ``DeviceFailed`` where a GPU reports an error, other than that its memory is short."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not any(mark in str(error) for mark in DEVICE_ERRORS):
            raise
        line = str(error).strip().splitlines()[0]
        raise DeviceFailed(f"the GPU failed ({line}); only a new process can use it again") from error


class Bisection:
    """Computes the rows of steps so that one that raises ends alone."""

    def __init__(self) -> None:
        self._barren: set[int] = set()

    def run(self, compute: Compute, rows: list[Row], outcome: Outcome) -> None:
        """Have ``compute`` do the rows of a step, and put what they bring into ``outcome``.

        Raises:
            Exception: what ``compute`` raised, where no single row can be at fault.
        """
        error = self._try(compute, rows, outcome)
        if error is None:
            self._barren.clear()
            return
        log.error("a step of %d sequences raised; they are computed apart", len(rows), exc_info=error)
        failed = self._apart(compute, rows, outcome, error)
        if failed < len(rows):
            self._barren.clear()
            return
        self._barren.update(hash(tuple(row.entry.token_ids)) for row in rows)
        if not _is_memory(error) and len(self._barren) >= MAX_BARREN:
            raise error

    def _apart(self, compute: Compute, rows: list[Row], outcome: Outcome, error: Exception) -> int:
        """Compute rows that raised together; returns how many of them failed."""
        if len(rows) == 1:
            return self._alone(compute, rows[0], outcome)
        middle = len(rows) // 2
        failed = 0
        for half in (rows[:middle], rows[middle:]):
            again = self._try(compute, half, outcome)
            if again is not None:
                failed += self._apart(compute, half, outcome, again)
        return failed

    def _alone(self, compute: Compute, row: Row, outcome: Outcome) -> int:
        error = self._try(compute, [row], outcome)
        if error is None:
            return 0
        if _is_memory(error):
            if row.end - row.start > 1:
                middle = (row.start + row.end) // 2
                return self._pieces(compute, [replace(row, end=middle), replace(row, start=middle)], outcome)
            outcome.fail(row, "there is not enough memory to compute this request now", OutOfMemory.code)
        else:
            log.error("sequence %d is at fault and fails", row.seq_id, exc_info=error)
            outcome.fail(row, "computing this request fails; it is not tried again", PoisonRequest.code)
        return 1

    def _pieces(self, compute: Compute, pieces: list[Row], outcome: Outcome) -> int:
        for piece in pieces:
            if self._alone(compute, piece, outcome):
                return 1
        return 0

    def _try(self, compute: Compute, rows: list[Row], outcome: Outcome) -> Exception | None:
        """All or nothing: rows that raise are left as they were."""
        lengths = [len(row.entry.token_ids) for row in rows]
        pooled = {i: copy.deepcopy(row.entry.pooled) for i, row in enumerate(rows) if row.entry.pooled is not None}
        found = Outcome()
        try:
            with telling_device_failures():
                compute(rows, found)
        except DeviceFailed:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, it is told, and costs one request)
            for i, row in enumerate(rows):
                del row.entry.token_ids[lengths[i] :]
                row.entry.failed = False
                row.entry.pooled = pooled.get(i)
            return error
        outcome.add(found)
        return None


def _is_memory(error: Exception) -> bool:
    """Memory was short: Python's, a device's, or the C++ library's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("bad_alloc" in text or "DefaultCPUAllocator" in text)
