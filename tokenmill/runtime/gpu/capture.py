"""CUDA graphs of steps: what the host would launch again and again, recorded once and replayed by one call.

A step's *key* says all that its launches depend on: the bucket of rows, which kernels sampling needs, whether it must
be invariant. The first step with a key runs eagerly, which compiles, loads and allocates whatever it needs. The second
is captured: its launches are recorded instead of carried out, which takes the host what launching takes (milliseconds),
and the graph is replayed at once, for that step and all that follow. So nothing that is served waits for more than the
making of one graph, steps in flight go on behind it, and no shape is captured that does not recur. ``warm_up`` of the
model captures the likely ones before anything is served.

All graphs allocate from one pool: they never run at the same time. Captured is what this thread does on this stream;
what others do on the GPU meanwhile neither breaks the capture nor lands in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import suppress

import torch

log = logging.getLogger(__name__)

SEEN_BEFORE_CAPTURE = 1
"""Eager steps with a key before it is captured."""
NEVER = -(2**62)


class Graphs:
    """Recorded steps by key. All calls are made with ``stream`` current."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._seen: dict[Hashable, int] = {}
        self.num_replays = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Carry out ``step``: by its graph if there is one, else eagerly, or by the graph that is made of it here."""
        graph = self._graphs.get(key)
        if graph is None:
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if seen <= SEEN_BEFORE_CAPTURE or (graph := self._capture(key, step)) is None:
                step()
                return
        graph.replay()
        self.num_replays += 1

    def _capture(self, key: Hashable, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Record ``step``; None if it cannot be: it runs eagerly from then on."""
        graph = torch.cuda.CUDAGraph()
        # Not ``torch.cuda.graph``: that synchronises the device, collects garbage and empties the allocator's cache.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            step()
        except Exception:
            log.exception("steps of %s cannot be captured and run eagerly", key)
            self._seen[key] = NEVER
            with suppress(RuntimeError):  # the capture may be over already
                graph.capture_end()
            return None
        graph.capture_end()
        self._graphs[key] = graph
        return graph
