"""``Responses``: what the server remembers of responses between requests."""

from __future__ import annotations

from tokenmill.server.responses.background import Background
from tokenmill.server.responses.store import Bounds, Memory, ResponseStore
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Store


class Responses:
    """Those that are kept, and those under way in the background."""

    def __init__(self, settings: ServerSettings, store: Store) -> None:
        """``store``: where they are kept if it outlives the process; otherwise they are kept in memory."""
        self._memory = None if store.lasting else Memory()
        bounds = Bounds(settings.max_stored_responses, settings.max_stored_response_bytes, settings.response_ttl_s)
        self.store = ResponseStore(bounds, store if self._memory is None else self._memory)
        self.background = Background()

    async def close(self) -> None:
        """End what is under way and keep it as it is. The database is still there; the engine need not be."""
        await self.background.close()
        if self._memory is not None:
            self._memory.close()
