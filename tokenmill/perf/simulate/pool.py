"""A pool: equal replicas behind one router, as many as there shall be.

A replica that is started takes requests after a cold start (those there from the beginning at once). One that is
no longer wanted takes no more and goes when its last request is done. Who finds no replica ready waits in line.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tokenmill.core.errors import ConfigError
from tokenmill.core.request import Request
from tokenmill.engine.routing import Autoscaler, PoolLoad, Router, ScalingConfig, make_router
from tokenmill.perf.simulate.records import Gaps
from tokenmill.perf.simulate.replica import EngineSetup, Replica


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Replicas of one kind."""

    engine: EngineSetup
    replicas: int = 1
    """Ready from the beginning."""
    router: str = "least_loaded"
    """A name in ``engine.routing.ROUTERS``."""
    scaling: ScalingConfig | None = None
    """None: as many as there are."""

    def __post_init__(self) -> None:
        lowest = self.scaling.min_replicas if self.scaling else 1
        highest = self.scaling.max_replicas if self.scaling else None
        if self.replicas < lowest or (highest is not None and self.replicas > highest):
            wanted = f"from {lowest} to {highest}" if highest is not None else "at least 1"
            raise ConfigError(f"replicas must be {wanted}, not {self.replicas}")


class Pool:
    """The replicas of a pool, by number, and who is waiting for one."""

    def __init__(self, config: PoolConfig, gaps: Gaps) -> None:
        self.config = config
        self.router: Router = make_router(config.router)
        self.autoscaler = Autoscaler(config.scaling) if config.scaling else None
        self.replicas: dict[int, Replica] = {}
        """Those that take requests or have some left."""
        self.gone: list[Replica] = []
        self.starting: set[int] = set()
        self.waiting: deque[Request] = deque()
        self.num_cold_starts = 0
        self.num_ready = 0
        self._starting_s: dict[int, float] = {}
        self._gaps = gaps

    @property
    def load(self) -> PoolLoad:
        under_way = sum(len(replica.requests) for replica in self.replicas.values())
        return PoolLoad(self.num_ready + len(self.starting), under_way + len(self.waiting))

    def start(self, number: int, now: float) -> None:
        """Decide on a new replica; ``ready`` follows."""
        self.starting.add(number)
        self._starting_s[number] = now

    def ready(self, number: int, now: float) -> bool:
        """The replica takes requests from now on; False if it is no longer wanted."""
        born_s = self._starting_s.pop(number)
        if number not in self.starting:
            return False
        self.starting.discard(number)
        replica = self.replicas[number] = Replica(number, self.config.engine, self._gaps, now)
        replica.born_s = born_s
        self.num_ready += 1
        self.router.join(number)
        return True

    def shrink(self, count: int, now: float) -> None:
        """Let ``count`` replicas go: those still starting first, then those with the least to do, latest first."""
        for number in sorted(self.starting, reverse=True)[:count]:
            self.starting.discard(number)
            count -= 1
        ready = [replica for replica in self.replicas.values() if not replica.draining]
        for replica in sorted(ready, key=lambda r: (len(r.requests), -r.number))[:count]:
            replica.draining = True
            self.num_ready -= 1
            self.router.leave(replica.number)
            self.release(replica, now)

    def release(self, replica: Replica, now: float) -> None:
        """A draining replica without requests is gone."""
        if replica.draining and not replica.requests:
            self._bury(replica, now)

    def kill(self, number: int, now: float) -> list[Request]:
        """The node is dead; returns the requests it had. Unknown is fine: it has gone already."""
        self.starting.discard(number)
        replica = self.replicas.get(number)
        if replica is None:
            return []
        if not replica.draining:
            self.num_ready -= 1
            self.router.leave(number)
        lost = list(replica.requests.values())
        self._bury(replica, now)
        return lost

    def _bury(self, replica: Replica, now: float) -> None:
        replica.gone_s = now
        replica.version += 1  # no appointment of its holds any more
        del self.replicas[replica.number]
        self.gone.append(replica)
