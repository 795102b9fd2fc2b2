"""Discrete events over many engines: what happens next, in order, until everything has happened.

One heap of appointments: a node fails or is ready, a request arrives, keys and values have come over a link, an
engine's step ends. Time jumps from one to the next. At equal times replicas come and go first, then requests
arrive, then engines move on, so that a step planned at ``t`` has seen all that arrived by ``t``; beyond that the
order is that of making the appointment. No clock and no chance: two runs are the same.

A request goes to the serving pool, or, where there is a decode pool, first to the prefill pool for its prompt and
first token, then over a link to a decode replica for the rest. When a node dies, the requests it had begin anew
elsewhere and keep their time of arrival.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count as counter
from typing import Any

from tokenmill.core.errors import ConfigError, RequestError
from tokenmill.core.events import FinishedRecord
from tokenmill.core.request import Request
from tokenmill.engine.routing import Pairing
from tokenmill.perf.simulate.pool import Pool, PoolConfig
from tokenmill.perf.simulate.records import Gaps, Served
from tokenmill.perf.simulate.replica import Replica
from tokenmill.perf.simulate.transfer import TransferCost
from tokenmill.perf.simulate.workload import Prompts, TraceRequest

NODES, ARRIVALS, TURNS = range(3)
"""What comes first at equal times."""
TOLD_EVERY = 64
"""Arrivals between two words about progress."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A node dies."""

    time_s: float
    replica: int
    """Replicas are numbered from 0 in order of starting, the prefill pool's before the decode pool's."""
    down_s: float | None = None
    """A fresh one takes its place after so long; None: never."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What is simulated. With ``decode``, ``serve`` is the prefill pool and ``transfer`` the link between them."""

    serve: PoolConfig
    decode: PoolConfig | None = None
    transfer: TransferCost | None = None
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        if (self.decode is None) != (self.transfer is None):
            raise ConfigError("a decode pool needs a transfer link, and a link a decode pool")
        pools = [self.serve, *([self.decode] if self.decode else [])]
        known = None if any(pool.scaling for pool in pools) else sum(pool.replicas for pool in pools)
        for failure in self.failures:
            if failure.replica < 0 or (known is not None and failure.replica >= known):
                raise ConfigError(f"replica {failure.replica} cannot fail: there are 0 to {(known or 1) - 1}")
            if not failure.time_s >= 0 or (failure.down_s is not None and not failure.down_s >= 0):
                raise ConfigError(f"a failure's time and length must be at least 0, not {failure}")


@dataclass(slots=True)
class Outcome:
    """What became of it all."""

    served: list[Served]
    gaps: Gaps
    pools: dict[str, Pool]
    end_s: float
    num_failures: int = 0
    num_transfers: int = 0
    transfer_wait_s: float = 0.0
    """From first token to the last byte, summed over transfers."""
    num_events: int = 0


@dataclass(slots=True)
class _Live:
    """A request under way."""

    whole: Request
    served: Served
    pool: Pool
    done_prompt_s: float | None = None
    """When the prefill pool was done with it."""


class Cluster:
    """One simulation: made, run, done."""

    def __init__(self, config: ClusterConfig, *, keep_gaps: bool = False) -> None:
        gaps = Gaps(keep=keep_gaps)
        self.serve = Pool(config.serve, gaps)
        self.decode = Pool(config.decode, gaps) if config.decode else None
        pools = {"serve": self.serve} if self.decode is None else {"prefill": self.serve, "decode": self.decode}
        self.outcome = Outcome([], gaps, pools, 0.0)
        self._config = config
        self._pairing = Pairing(self.serve.router, self.decode.router) if self.decode else None
        self._link_free_s: dict[int, float] = {}  # by sender
        self._live: dict[str, _Live] = {}
        self._heap: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = counter()
        self._numbers = counter()
        self._now = 0.0
        self._more = True  # requests are still to come

    def run(self, requests: Iterable[TraceRequest], progress: Callable[[int], object] = lambda done: None) -> Outcome:
        """Serve ``requests``, in order of arrival, to the last one; ``progress`` hears how many have arrived."""
        for pool in self.outcome.pools.values():
            for _ in range(pool.config.replicas):
                self._launch(pool, 0.0)
            if pool.config.scaling:
                self._at(pool.config.scaling.interval_s, NODES, self._look, pool)
        for failure in self._config.failures:
            self._at(failure.time_s, NODES, self._fail, failure)
        arrivals = Prompts()(requests)
        self._next_arrival(arrivals, progress)
        heap = self._heap
        while heap and (self._more or self._live):
            self._now, _, _, happen, about = heapq.heappop(heap)
            self.outcome.num_events += 1
            happen(*about)
        for request_id, live in list(self._live.items()):
            self._give_up(request_id, live, "no replica was left")
        return self.outcome

    def _at(self, moment_s: float, phase: int, happen: Callable[..., None], *about: Any) -> None:
        heapq.heappush(self._heap, (moment_s, phase, next(self._order), happen, about))

    # ---- requests ----------------------------------------------------------------------------------

    def _next_arrival(self, arrivals: Iterator[Request], progress: Callable[[int], object]) -> None:
        request = next(arrivals, None)
        if request is None:
            self._more = False
            return
        self._at(max(request.arrival_s, self._now), ARRIVALS, self._arrive, request, arrivals, progress)

    def _arrive(self, request: Request, arrivals: Iterator[Request], progress: Callable[[int], object]) -> None:
        served = Served(request.arrival_s, len(request.prompt_token_ids), request.max_new_tokens)
        self.outcome.served.append(served)
        if len(self.outcome.served) % TOLD_EVERY == 0:
            progress(len(self.outcome.served))
        self._live[request.id] = _Live(request, served, self.serve)
        self._begin(request.id)
        self._next_arrival(arrivals, progress)

    def _begin(self, request_id: str) -> None:
        """Send a request, new or anew, to the pool in which it starts."""
        live = self._live[request_id]
        live.pool, live.done_prompt_s = self.serve, None
        self._send(self._pairing.prompt_part(live.whole) if self._pairing else live.whole, self.serve)

    def _send(self, request: Request, pool: Pool) -> None:
        """To a replica of ``pool``; with none ready, into the line."""
        if pool.num_ready == 0:
            pool.waiting.append(request)
            self._scale(pool)
            return
        replica = pool.replicas[pool.router.route(request)]
        self._hand_over(request, pool, replica)

    def _hand_over(self, request: Request, pool: Pool, replica: Replica) -> None:
        live = self._live[request.id]
        if live.done_prompt_s is not None:
            replica.cache.receive(request.id, len(request.prompt_token_ids) - 1)
        version = replica.version
        try:
            replica.add(request, self._now)
        except RequestError as error:
            pool.router.ended(replica.number, request)
            self._give_up(request.id, live, error.message)
            return
        if replica.until_s is None:
            self._at(self._now, TURNS, self._turn, pool, replica, replica.version)
        elif replica.version != version:
            self._appoint(pool, replica)

    def _give_up(self, request_id: str, live: _Live, error: str) -> None:
        live.served.error = error
        live.served.finish_s = self._now
        self.outcome.gaps.end(request_id)
        del self._live[request_id]

    def _ended(self, record: FinishedRecord, request: Request, pool: Pool, replica: Replica) -> None:
        """A replica is done with its part of a request."""
        live = self._live[record.request_id]
        served = live.served
        pool.router.ended(replica.number, request)
        served.queue_s += record.account.queue_s
        served.num_preemptions += record.account.num_preemptions
        if record.outcome != "finished":
            self._give_up(record.request_id, live, f"the engine gave it up: {record.outcome}")
            return
        if live.done_prompt_s is None:
            served.first_token_s = record.first_token_s
            served.cached_tokens = record.cached_tokens
            if self._pairing and (rest := self._pairing.answer_part(live.whole, live.whole.seed)):
                self._transfer(live, record, rest, replica)
                return
        served.finish_s = self._now
        served.gaps_s = self.outcome.gaps.end(record.request_id)
        self.outcome.end_s = max(self.outcome.end_s, self._now)
        del self._live[record.request_id]

    # ---- engines -----------------------------------------------------------------------------------

    def _appoint(self, pool: Pool, replica: Replica) -> None:
        assert replica.until_s is not None
        self._at(replica.until_s, TURNS, self._turn, pool, replica, replica.version)

    def _turn(self, pool: Pool, replica: Replica, version: int) -> None:
        if version != replica.version:
            return  # moved, or dead
        for record, request in replica.turn(self._now):
            self._ended(record, request, pool, replica)
        if replica.until_s is not None:
            self._appoint(pool, replica)
        elif replica.draining:
            pool.release(replica, self._now)

    # ---- keys and values over a link ---------------------------------------------------------------

    def _transfer(self, live: _Live, record: FinishedRecord, rest: Request, sender: Replica) -> None:
        """The prompt is computed: send it on. The first token goes to the client meanwhile."""
        assert self._config.transfer is not None and self.decode is not None
        live.done_prompt_s, live.pool = self._now, self.decode
        begin_s = record.arrival_s + record.account.queue_s
        num_tokens = len(rest.prompt_token_ids) - 1
        free_s, there_s = self._config.transfer.end_s(
            num_tokens, self._link_free_s.get(sender.number, 0.0), begin_s, self._now
        )
        self._link_free_s[sender.number] = free_s
        self.outcome.num_transfers += 1
        self.outcome.transfer_wait_s += there_s - self._now
        self._at(there_s, ARRIVALS, self._received, rest)

    def _received(self, request: Request) -> None:
        assert self.decode is not None
        self._send(replace(request, arrival_s=self._now), self.decode)

    # ---- nodes come and go -------------------------------------------------------------------------

    def _launch(self, pool: Pool, cold_s: float) -> None:
        number = next(self._numbers)
        pool.start(number, self._now)
        if cold_s == 0.0:
            self._ready(pool, number)
        else:
            pool.num_cold_starts += 1
            self._at(self._now + cold_s, NODES, self._ready, pool, number)

    def _ready(self, pool: Pool, number: int) -> None:
        if pool.ready(number, self._now):
            while pool.waiting:
                self._send(pool.waiting.popleft(), pool)

    def _look(self, pool: Pool) -> None:
        """The autoscaler's round."""
        self._scale(pool)
        assert pool.config.scaling is not None
        self._at(self._now + pool.config.scaling.interval_s, NODES, self._look, pool)

    def _scale(self, pool: Pool) -> None:
        if pool.autoscaler is None:
            return
        load = pool.load
        wanted = pool.autoscaler.decide(load, self._now) - load.num_replicas
        for _ in range(wanted):
            self._launch(pool, pool.autoscaler.config.cold_start_s)
        if wanted < 0:
            pool.shrink(-wanted, self._now)

    def _fail(self, failure: Failure) -> None:
        for pool in self.outcome.pools.values():
            if failure.replica in pool.replicas:
                self.outcome.num_failures += 1
                if failure.down_s is not None:
                    self._launch(pool, failure.down_s)
                for request in pool.kill(failure.replica, self._now):
                    live = self._live[request.id]
                    live.served.num_restarts += 1
                    self.outcome.gaps.end(request.id)
                    self._begin(request.id)
