"""In what order waiting sequences are taken up, and who among the running gives way.

A policy owns the waiting queue. ``fcfs``, ``sjf``, ``priority`` and ``deadline`` order by a key that is
fixed when a sequence joins, so they are one heap with four keys. ``fair`` orders tenants by the service
they had (virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).

The victim of a preemption is the running sequence that the same policy would have taken up last.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import count as counter
from typing import Protocol

from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.sequence import Sequence

Key = tuple[float, ...]

AGING_TOKENS_PER_S = 200.0
"""Shortest-job-first: each second of waiting counts as a job this many tokens shorter, so that nobody starves."""

PRIORITY_AGING_S = 60.0
"""Priority: so many seconds of waiting count as one step of priority, so that nobody starves."""

NO_DEADLINE_S = 600.0
"""Deadline: who names none is treated as if this were his, so that he does not starve behind all who do."""

OUTPUT_WEIGHT = 2.0
"""Fair share: a generated token counts as this many prompt tokens (as in the paper)."""


MAX_TENANTS = 10_000
"""Fair share: beyond so many names, those with nobody waiting are forgotten."""


class Policy(Protocol):
    """The waiting queue and its order."""

    counts_service: bool
    """Wants ``served`` to be called for every row of every step."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...

    def push(self, seq: Sequence) -> None: ...

    def peek(self) -> Sequence | None:
        """The sequence to take up next; None if nobody waits."""
        ...

    def pop(self) -> Sequence:
        """Take out what ``peek`` showed."""
        ...

    def remove(self, seq: Sequence) -> None: ...

    def rank(self, seq: Sequence) -> Key:
        """Order among the running: the greatest gives way first."""
        ...

    def served(self, seq: Sequence, num_tokens: int) -> None:
        """``num_tokens`` of the sequence were put into a step."""
        ...


def arrival_key(seq: Sequence) -> Key:
    return (seq.request.arrival_s, seq.order)


def shortest_key(seq: Sequence) -> Key:
    aged = seq.max_tokens + AGING_TOKENS_PER_S * seq.request.arrival_s
    return (aged, *arrival_key(seq))


def priority_key(seq: Sequence) -> Key:
    return (seq.request.priority + seq.request.arrival_s / PRIORITY_AGING_S, *arrival_key(seq))


def deadline_key(seq: Sequence) -> Key:
    deadline_s = seq.request.deadline_s
    return (seq.request.arrival_s + NO_DEADLINE_S if deadline_s is None else deadline_s, *arrival_key(seq))


class KeyedPolicy:
    """A heap ordered by a key that does not change while a sequence waits."""

    counts_service = False

    def __init__(self, key: Callable[[Sequence], Key]) -> None:
        self.rank = key
        self._heap: list[tuple[Key, Sequence]] = []  # keys end in the order, so sequences are never compared
        self._waiting: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._waiting.values()))

    def push(self, seq: Sequence) -> None:
        self._waiting[seq.seq_id] = seq
        heapq.heappush(self._heap, (self.rank(seq), seq))

    def peek(self) -> Sequence | None:
        while self._heap and self._heap[0][1].seq_id not in self._waiting:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Sequence:
        seq = heapq.heappop(self._heap)[1]
        del self._waiting[seq.seq_id]
        return seq

    def remove(self, seq: Sequence) -> None:
        """The heap entry stays until it reaches the top, so that leaving costs the same however long the queue."""
        del self._waiting[seq.seq_id]

    def served(self, seq: Sequence, num_tokens: int) -> None:
        """A fixed order does not change with service."""


class FairPolicy:
    """The tenant that had the least service per weight goes first; within a tenant, first come first served.

    A tenant's weight is the configured one, else what its requests bring. Tenants with a queue are in a heap by
    the service that they had when last looked at: it only grows, so the top, brought up to date, is the least.
    """

    counts_service = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._service: dict[str, float] = {}
        self._queues: dict[str, deque[Sequence]] = {}
        self._heap: list[tuple[float, int, str]] = []  # service then, order of coming, tenant: one for each queue
        self._comers = counter()
        self._waiting: dict[int, Sequence] = {}
        self._last_tenant: str | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._waiting.values()))

    def push(self, seq: Sequence) -> None:
        tenant = seq.request.tenant
        if tenant not in self._queues:
            self._lift(tenant)
            self._queues[tenant] = deque()
            heapq.heappush(self._heap, (self._service[tenant], next(self._comers), tenant))
        self._waiting[seq.seq_id] = seq
        if seq.num_preemptions:
            self._queues[tenant].appendleft(seq)
        else:
            self._queues[tenant].append(seq)

    def peek(self) -> Sequence | None:
        while self._heap:
            service, order, tenant = self._heap[0]
            queue = self._queues[tenant]
            while queue and queue[0].seq_id not in self._waiting:
                queue.popleft()
            if not queue:
                heapq.heappop(self._heap)
                del self._queues[tenant]
            elif self._service[tenant] > service:
                heapq.heapreplace(self._heap, (self._service[tenant], order, tenant))
            else:
                return queue[0]
        return None

    def pop(self) -> Sequence:
        seq = self.peek()
        assert seq is not None
        self._queues[seq.request.tenant].popleft()
        self._last_tenant = seq.request.tenant
        del self._waiting[seq.seq_id]
        return seq

    def remove(self, seq: Sequence) -> None:
        del self._waiting[seq.seq_id]

    def rank(self, seq: Sequence) -> Key:
        return (self._service.get(seq.request.tenant, 0.0), *arrival_key(seq))

    def served(self, seq: Sequence, num_tokens: int) -> None:
        tenant = seq.request.tenant
        weight = OUTPUT_WEIGHT if seq.num_planned >= seq.prompt_len else 1.0
        share = self._weights.get(tenant, seq.request.weight)
        self._service[tenant] = self._service.get(tenant, 0.0) + num_tokens * weight / share

    def _lift(self, tenant: str) -> None:
        """A tenant that comes back has no claim on the time it was away."""
        if len(self._service) > MAX_TENANTS:
            kept = {*self._queues, self._last_tenant}
            self._service = {name: service for name, service in self._service.items() if name in kept}
        least = self.peek()
        present = self._last_tenant if least is None else least.request.tenant
        floor = 0.0 if present is None else self._service.get(present, 0.0)
        self._service[tenant] = max(self._service.get(tenant, 0.0), floor)


_KEYS: dict[str, Callable[[Sequence], Key]] = {
    "fcfs": arrival_key,
    "sjf": shortest_key,
    "priority": priority_key,
    "deadline": deadline_key,
}


def make_policy(config: SchedulerConfig) -> Policy:
    """The policy that ``config`` names."""
    if config.policy == "fair":
        return FairPolicy(config.tenant_weights)
    return KeyedPolicy(_KEYS[config.policy])
