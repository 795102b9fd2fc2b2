"""``Slices``: requests begin a few in each turn of the event loop, so that a hundred that come at once hold nobody up.

To read, check and tokenise a request takes a millisecond. What else waits for its turn (tokens of others, who asks for
health, whom to refuse) waits for a few of them at most. They begin in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections import deque

AT_ONCE = 4


class Slices:
    """On one event loop only."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_set = False

    def __len__(self) -> int:
        """How many wait to begin."""
        return len(self._waiting)

    async def begin(self) -> None:
        """Return at once if few have begun in this turn; else in a later one."""
        loop = asyncio.get_running_loop()
        if not self._is_set:
            self._is_set = True
            loop.call_soon(self._next_turn, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._at_once
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client has gone
                turn.set_result(None)
                self._left -= 1
        self._is_set = bool(self._waiting)
        if self._is_set:
            loop.call_soon(self._next_turn, loop)
