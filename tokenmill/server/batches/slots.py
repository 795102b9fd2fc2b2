"""How many lines of batches may be in flight, and whose turn it is.

The number follows what the engine takes: it grows by one for about as many answers as there are slots, and is halved
when a request is turned away, as a network's sender does. Free slots go round the tenants, and within a tenant round
its batches, so that a hundred batches of one do not keep another's from beginning.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class Slots:
    """At most ``max_slots`` at once, fewer while the engine turns lines away."""

    def __init__(self, max_slots: int) -> None:
        self._max = max_slots
        self.limit = float(max_slots)
        self.num_taken = 0
        self.period = 0
        """Counts the times that the limit was lowered."""
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self, tenant: str) -> None:
        """Wait for a slot; whoever has one gives it back with ``release``."""
        if not self._waiting and self.num_taken < int(self.limit):
            self.num_taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._hand_out()  # whoever waited before may have left
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        self.num_taken -= 1
        self._hand_out()

    def answered(self) -> None:
        """The engine took and finished a line."""
        self.limit = min(float(self._max), self.limit + 1 / self.limit)
        self._hand_out()

    def refused(self, period: int) -> None:
        """The engine turned a line away that was sent in ``period``. Those sent together lower the limit once."""
        if period == self.period:
            self.period += 1
            self.limit = max(1.0, self.limit / 2)

    def _hand_out(self) -> None:
        while self._waiting and self.num_taken < int(self.limit):
            tenant, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # at the end: the others come first
            if not turn.done():
                self.num_taken += 1
                turn.set_result(None)
