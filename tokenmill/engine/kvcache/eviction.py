"""Which cached block gives way first: expired ones, then the lowest priority, then the least recently used.

Half of the pool is shared out evenly between the tenants whose blocks are cached (``FairEviction``): as long as one has
no more than its part, nobody else's prompts push its blocks out. Priority and pinning count within that part only.

Only blocks that nobody holds are here. Within a level the order of arrival is the order of last use: a
block enters when its last holder lets go, and leaves when somebody takes it up again.

A level is an ``OrderedDict``, a linked list with an index: its oldest entry is found in constant time. A plain
dict keeps the order too, but looks for its first entry past the gap that every earlier one has left.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain, count

PINNED = 2**31
"""The level of pinned blocks: above every priority a client can ask for."""

MAX_CHANCES = 256
"""Blocks that are spared in a row before one goes all the same."""


class EvictionQueue:
    """Unheld cached blocks in the order in which they are given up."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[int, int]] = {}  # priority → {block id: ticket}, oldest first; none empty
        self._expiries: list[tuple[float, int, int, int]] = []  # (moment, ticket, priority, block id); may be stale
        self._tickets = count(1)  # one per stay of a block that can expire; 0: this stay cannot

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._levels.values())

    def add(self, block_id: int, priority: int, expires_s: float | None) -> None:
        """The block's last holder let go of it."""
        ticket = 0
        if expires_s is not None:
            ticket = next(self._tickets)
            heapq.heappush(self._expiries, (expires_s, ticket, priority, block_id))
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = OrderedDict()
        level[block_id] = ticket

    def remove(self, block_id: int, priority: int) -> None:
        """The block, added with this priority, is held again."""
        level = self._levels[priority]
        del level[block_id]
        if not level:
            del self._levels[priority]

    def pop(self, now: float) -> int:
        """Take out the block to give up next."""
        while self._expiries and self._expiries[0][0] <= now:
            _, ticket, priority, block_id = heapq.heappop(self._expiries)
            resting = self._levels.get(priority)
            if resting is not None and resting.get(block_id) == ticket:
                self.remove(block_id, priority)
                return block_id
        priority = min(self._levels)
        level = self._levels[priority]
        block_id, _ = level.popitem(last=False)
        if not level:
            del self._levels[priority]
        return block_id


class FairEviction:
    """An ``EvictionQueue`` that spares tenants who have no more than their part.

    A block of such a tenant that is the next to go is put back as if just used, and the next one is looked at. Each
    is looked at once in a round through the queue, so an eviction costs the same whatever the number of tenants.

    Args:
        tenants: whose each block of the pool is, as long as it is in the queue.
    """

    def __init__(self, tenants: Sequence[str]) -> None:
        self._tenants = tenants
        self._queue = EvictionQueue()
        self._counts: dict[str, int] = {}
        self._levels = [0] * len(tenants)
        self._expiring: set[int] = set()
        self._size = 0

    def __iter__(self) -> Iterator[int]:
        return iter(self._queue)

    def add(self, block_id: int, level: int, expires_s: float | None) -> None:
        """The block's last holder let go of it."""
        counts, tenant = self._counts, self._tenants[block_id]
        count = counts[tenant] = counts.get(tenant, 0) + 1
        self._size += 1
        if level and len(counts) > 1 and count > self._part:
            level = 0
        if expires_s is not None:
            self._expiring.add(block_id)
        self._levels[block_id] = level
        self._queue.add(block_id, level, expires_s)

    def remove(self, block_id: int) -> None:
        """The block is held again."""
        self._queue.remove(block_id, self._levels[block_id])
        self._forget(block_id)

    def pop(self, now: float) -> int:
        """Take out the block to give up next."""
        block_id = self._queue.pop(now)
        if len(self._counts) > 1:
            for _ in range(MAX_CHANCES):
                if not self._spares(block_id):
                    break
                self._queue.add(block_id, self._levels[block_id], None)
                block_id = self._queue.pop(now)
        self._forget(block_id)
        return block_id

    @property
    def _part(self) -> float:
        return len(self._tenants) / (2 * len(self._counts))

    def _spares(self, block_id: int) -> bool:
        """Not what may expire; and with more than half of the pool cached, somebody has more than his part."""
        has_part = self._counts[self._tenants[block_id]] <= self._part
        return has_part and block_id not in self._expiring and 2 * self._size > len(self._tenants)

    def _forget(self, block_id: int) -> None:
        self._expiring.discard(block_id)
        self._size -= 1
        tenant = self._tenants[block_id]
        left = self._counts[tenant] = self._counts[tenant] - 1
        if not left:
            del self._counts[tenant]
