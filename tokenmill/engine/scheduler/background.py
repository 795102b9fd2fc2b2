"""Background work: after everybody else whatever the policy, in what the others leave, and out of their way.

- It is taken up only when no interactive request waits that could be (``BackgroundLast``).
- In a step that it shares with others it may have so many tokens that the step becomes longer by at most a fifth,
  as recent steps tell, and at least one, so that it goes on (``BackgroundShare``). Alone it has the whole step.
- Where an interactive request wants a place in the batch or blocks, background sequences give theirs up, the youngest
  first, and are computed again later. They are never refused for it, whatever the preemption policy.

It starves only as long as interactive requests leave no place in the batch at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from tokenmill.core.sequence import Sequence
from tokenmill.engine.scheduler.budget import LineFit
from tokenmill.engine.scheduler.draft import PlanDraft
from tokenmill.engine.scheduler.policy import Key, Policy

SLOWDOWN = 0.2
"""How much longer background work may make a step that others share."""


class BackgroundShare:
    """How many tokens of a step may be background work."""

    def __init__(self) -> None:
        self._fit = LineFit()

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._fit.observe(num_tokens, seconds)

    def tokens(self, num_others: int, room: int) -> int:
        """Most tokens beside ``num_others`` of interactive requests, when ``room`` are left of the budget."""
        base_s, per_token_s = self._fit.line()
        if per_token_s <= 0.0:
            return min(room, max(1, int(SLOWDOWN * num_others)))
        return min(room, max(1, int(SLOWDOWN * (max(0.0, base_s) / per_token_s + num_others))))

    def take_out(self, draft: PlanDraft, behind: list[Sequence]) -> list[Sequence]:
        """Background sequences leave the draft (of generating rows only) and ``behind``; those that generate first."""
        rows, starts, later = [], [], []
        for seq, start in zip(draft.rows, draft.starts, strict=True):
            if seq.request.background:
                seq.num_planned -= 1
                seq.num_pending -= 1
                later.append(seq)
            else:
                rows.append(seq)
                starts.append(start)
        draft.rows, draft.starts, draft.counts = rows, starts, [1] * len(rows)
        later += [seq for seq in behind if seq.request.background]
        behind[:] = [seq for seq in behind if not seq.request.background]
        return later


class BackgroundLast:
    """Two queues under one policy: whoever is in the second is looked at when the first is empty."""

    def __init__(self, others: Policy, background: Policy) -> None:
        self._others = others
        self._background = background
        self.counts_service = others.counts_service

    def __len__(self) -> int:
        return len(self._others) + len(self._background)

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self._others, self._background)

    def push(self, seq: Sequence) -> None:
        self._home(seq).push(seq)

    def peek(self) -> Sequence | None:
        return self._others.peek() or self._background.peek()

    def pop(self) -> Sequence:
        return self._others.pop() if self._others.peek() is not None else self._background.pop()

    def remove(self, seq: Sequence) -> None:
        self._home(seq).remove(seq)

    def rank(self, seq: Sequence) -> Key:
        return (float(seq.request.background), *self._others.rank(seq))

    def served(self, seq: Sequence, num_tokens: int) -> None:
        self._home(seq).served(seq, num_tokens)

    def _home(self, seq: Sequence) -> Policy:
        return self._background if seq.request.background else self._others
