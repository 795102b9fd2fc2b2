"""Who has how much to do: the router's own books, kept from what it sent and what it heard back.

A router asks for the least loaded of perhaps a thousand replicas at every request, so the minimum is kept in a
heap. Entries go stale as loads change; a stale one is dropped when it surfaces, and all of them when they are many.
"""

from __future__ import annotations

import heapq


class LoadBook:
    """Load by replica. Ties go to the lowest number."""

    def __init__(self) -> None:
        self._loads: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # (load, replica); stale where the load is another by now

    def __contains__(self, replica: int) -> bool:
        return replica in self._loads

    def __len__(self) -> int:
        return len(self._loads)

    def __getitem__(self, replica: int) -> int:
        return self._loads[replica]

    @property
    def replicas(self) -> list[int]:
        """Those that take requests, in order of joining."""
        return list(self._loads)

    def join(self, replica: int) -> None:
        self._loads[replica] = 0
        heapq.heappush(self._heap, (0, replica))

    def leave(self, replica: int) -> None:
        """Unknown is fine: a replica that drained may fail afterwards."""
        self._loads.pop(replica, None)

    def change(self, replica: int, by: int) -> None:
        """Its load grew (or fell); unknown is fine: it has left meanwhile."""
        if replica in self._loads:
            self._loads[replica] += by
            heapq.heappush(self._heap, (self._loads[replica], replica))
            if len(self._heap) > 8 * len(self._loads) + 64:
                self._heap = [(load, replica) for replica, load in self._loads.items()]
                heapq.heapify(self._heap)

    def least(self) -> int:
        """The replica with the least load."""
        heap, loads = self._heap, self._loads
        while loads.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][1]
