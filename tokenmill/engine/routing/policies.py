"""Which replica takes a request.

A router keeps its own books: it is told who joins and leaves, counts what it sends and hears what has ended, as a
router in front of real servers must. What is best depends on what is scarce:

- ``round_robin``: each in turn; even counts, whatever the requests weigh;
- ``least_loaded``: whoever has the fewest tokens to do (prompt and answer of all requests under way there);
- ``prefix``: whoever computed the longest part of this prompt before, unless that one is much busier than the
  least loaded (cache-aware routing with a bound on imbalance: SGLang, Zheng et al., NeurIPS 2024; Preble,
  Srivatsa et al., ICLR 2025);
- ``session``: the same replica for the same tenant, by highest random weight, so that one replica's coming or
  going moves only its own share (Thaler & Ravishankar 1998).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Protocol

from tokenmill.core.errors import ConfigError
from tokenmill.core.request import Request
from tokenmill.engine.routing.load import LoadBook


class Router(Protocol):
    """Chooses among the replicas that have joined. Asked only while there is one."""

    def join(self, replica: int) -> None:
        """The replica is ready."""
        ...

    def leave(self, replica: int) -> None:
        """It takes no more requests: drained, stopped or dead."""
        ...

    def route(self, request: Request) -> int:
        """The replica that gets ``request``; counted as sent."""
        ...

    def ended(self, replica: int, request: Request) -> None:
        """``request`` is no longer under way there."""
        ...


def weight(request: Request) -> int:
    """How much there is to do for a request, in tokens."""
    return len(request.prompt_token_ids) + request.max_new_tokens


class RoundRobin:
    """Each replica in turn."""

    def __init__(self) -> None:
        self._replicas: list[int] = []
        self._next = 0

    def join(self, replica: int) -> None:
        self._replicas.append(replica)

    def leave(self, replica: int) -> None:
        if replica in self._replicas:
            index = self._replicas.index(replica)
            del self._replicas[index]
            self._next -= index < self._next

    def route(self, request: Request) -> int:
        index = self._next % len(self._replicas)
        self._next = index + 1
        return self._replicas[index]

    def ended(self, replica: int, request: Request) -> None:
        """Turns do not depend on what has ended."""


class LeastLoaded:
    """The replica with the fewest tokens to do."""

    def __init__(self) -> None:
        self.book = LoadBook()

    def join(self, replica: int) -> None:
        self.book.join(replica)

    def leave(self, replica: int) -> None:
        self.book.leave(replica)

    def route(self, request: Request) -> int:
        return self.send(self.book.least(), request)

    def send(self, replica: int, request: Request) -> int:
        """Count ``request`` as under way at ``replica``, and return that."""
        self.book.change(replica, weight(request))
        return replica

    def ended(self, replica: int, request: Request) -> None:
        self.book.change(replica, -weight(request))


class PrefixAware(LeastLoaded):
    """The replica that has seen the longest part of the prompt, within a bound on imbalance.

    Args:
        chunk_tokens: prompts are remembered in pieces of so many tokens.
        max_chunks: how many pieces are remembered in all; the least recently used are forgotten.
        slack: the one that knows the prompt is taken while it has at most this many times the least load …
        free_tokens: … or at most so many tokens more.
    """

    def __init__(
        self, chunk_tokens: int = 128, max_chunks: int = 1_000_000, slack: float = 1.5, free_tokens: int = 8192
    ) -> None:
        super().__init__()
        self.chunk_tokens = chunk_tokens
        self.max_chunks = max_chunks
        self.slack = slack
        self.free_tokens = free_tokens
        self._seen: OrderedDict[int, int] = OrderedDict()  # hash of a prompt up to a chunk's end → replica

    def route(self, request: Request) -> int:
        chain = self._chain(request)
        least = self.book.least()
        chosen = self._knower(chain)
        if chosen is None or self.book[chosen] > self.slack * self.book[least] + self.free_tokens:
            chosen = least
        for key in chain:
            self._seen[key] = chosen
            self._seen.move_to_end(key)
        while len(self._seen) > self.max_chunks:
            self._seen.popitem(last=False)
        return self.send(chosen, request)

    def _chain(self, request: Request) -> list[int]:
        """One key per whole chunk, each covering the prompt from its start; a collision costs a miss, no more."""
        tokens, size = request.prompt_token_ids, self.chunk_tokens
        chain: list[int] = []
        key = hash(tuple(request.cache_salt.encode("utf-8", "surrogatepass")))
        for start in range(0, len(tokens) - size + 1, size):
            key = hash((key, tokens[start : start + size]))
            chain.append(key)
        return chain

    def _knower(self, chain: list[int]) -> int | None:
        """Who was last sent the longest known part of this prompt and is still there."""
        for key in reversed(chain):
            replica = self._seen.get(key)
            if replica is not None and replica in self.book:
                return replica
        return None


class Session(LeastLoaded):
    """The same replica for the same tenant."""

    def __init__(self) -> None:
        super().__init__()
        self._homes: dict[str, int] = {}  # as long as the set of replicas stays

    def join(self, replica: int) -> None:
        super().join(replica)
        self._homes.clear()

    def leave(self, replica: int) -> None:
        super().leave(replica)
        self._homes.clear()

    def route(self, request: Request) -> int:
        home = self._homes.get(request.tenant)
        if home is None:
            home = self._homes[request.tenant] = max(self.book.replicas, key=lambda r: _affinity(request.tenant, r))
        return self.send(home, request)


def _affinity(tenant: str, replica: int) -> bytes:
    return blake2b(f"{replica}:{tenant}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


ROUTERS: Mapping[str, Callable[[], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "prefix": PrefixAware,
    "session": Session,
}


def make_router(name: str) -> Router:
    """A fresh router by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ROUTERS:
        raise ConfigError(f"router {name!r} is unknown: there are {', '.join(ROUTERS)}")
    return ROUTERS[name]()
