"""What a step computes: rows of new tokens, each behind what its sequence already holds.

A row of ``n`` new tokens that starts at position ``c`` sees causally n·c + n(n+1)/2 (query, key) pairs, and reads c + n
positions of keys and values. With a window w a token sees at most w positions, itself included. Equal rows are
counted once with a multiplicity, so that a batch of a thousand is as cheap to think about as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenmill.core.step import StepPlan


@dataclass(frozen=True, slots=True)
class Rows:
    """``times`` rows of ``tokens`` new tokens each, after ``start`` known ones. Averages may be fractional."""

    tokens: float
    start: float
    times: float = 1.0

    @property
    def is_decode(self) -> bool:
        """One token: attention reads far more than it computes."""
        return self.tokens <= 1

    def pairs(self, window: int | None = None) -> float:
        """(query, key) pairs of all these rows."""
        n, c = self.tokens, self.start
        if window is None or c + n <= window:
            return self.times * (n * c + n * (n + 1) / 2)
        full = max(0.0, min(n, window - c))  # tokens that still see everything
        return self.times * (full * c + full * (full + 1) / 2 + (n - full) * window)

    def positions(self, window: int | None = None) -> float:
        """Positions whose keys and values all these rows read."""
        end = self.start + self.tokens
        return self.times * (end if window is None else min(end, window + self.tokens - 1))


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of one step, and of how many the logits are wanted."""

    rows: tuple[Rows, ...]
    outputs: float

    @classmethod
    def decode(cls, batch: float, context: float) -> Work:
        """One new token for each of ``batch`` sequences of ``context`` tokens, the new one included."""
        return cls((Rows(1, context - 1, batch),), batch)

    @classmethod
    def prefill(cls, tokens: float, cached: float = 0, count: float = 1) -> Work:
        """``count`` prompts of ``tokens`` tokens each after ``cached`` ones, to their first output."""
        return cls((Rows(tokens, cached, count),), count)

    @classmethod
    def of(cls, plan: StepPlan) -> Work:
        """The work of a plan; every row counts as wanting logits (a chunk inside a prompt does not: at most a row)."""
        rows: dict[tuple[int, int], int] = {}
        for key in zip(plan.counts, plan.starts, strict=True):
            rows[key] = rows.get(key, 0) + 1
        return cls(tuple(Rows(n, c, times) for (n, c), times in rows.items()), len(plan.seq_ids))

    def __add__(self, other: Work) -> Work:
        return Work(self.rows + other.rows, self.outputs + other.outputs)

    def scaled(self, share: float) -> Work:
        """A share of the rows: what one of several equal groups gets."""
        return Work(tuple(Rows(row.tokens, row.start, row.times * share) for row in self.rows), self.outputs * share)

    @property
    def tokens(self) -> float:
        return sum(row.tokens * row.times for row in self.rows)

    @property
    def num_rows(self) -> float:
        return sum(row.times for row in self.rows)

    def only(self, *, decode: bool) -> tuple[Rows, ...]:
        return tuple(row for row in self.rows if row.is_decode == decode)


def total_pairs(rows: Iterable[Rows], window: int | None = None) -> float:
    return sum(row.pairs(window) for row in rows)


def total_positions(rows: Iterable[Rows], window: int | None = None) -> float:
    return sum(row.positions(window) for row in rows)
