"""Which cached block gives way first: expired ones, then the lowest priority, then the least recently used.

Only blocks that nobody holds are here. Within a level the order of arrival is the order of last use: a
block enters when its last holder lets go, and leaves when somebody takes it up again.

A level is an ``OrderedDict``, a linked list with an index: its oldest entry is found in constant time. A plain
dict keeps the order too, but looks for its first entry past the gap that every earlier one has left.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, count

PINNED = 2**31
"""The level of pinned blocks: above every priority a client can ask for."""


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
