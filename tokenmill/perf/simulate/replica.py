"""One engine among many: the real scheduler, cache and loop, moved on by events.

A replica is either idle or busy until a known moment. ``turn`` is called then: it lands what has just ended and
begins what comes next, which is one step of ``Engine``, or a *run* of steps in which nothing can be decided
(``engine/scheduler/leap.py``). A run is priced ahead and taken back to the end of its present step when a request
arrives, so it is carried out in the scheduler only when it lands. A step is carried out at once; what it brought
is told when it ends. That changes nothing, since what arrives meanwhile only joins the queue.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import CacheConfig, SchedulerConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.events import FinishedRecord, StepEvents
from tokenmill.core.request import Request
from tokenmill.engine.contracts import StepCost
from tokenmill.engine.engine import Engine
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.scheduler.leap import horizon, settled, skip
from tokenmill.perf.simulate.executor import SimulatedExecutor
from tokenmill.perf.simulate.pricing import Run
from tokenmill.perf.simulate.records import Gaps
from tokenmill.perf.simulate.transfer import ReceivingCache

MIN_RUN, MAX_RUN = 16, 1024
"""Steps that a run is priced ahead: twice as many as the last one had, within these."""


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """How each engine of a pool is made. ``cache.num_blocks`` must be given: nobody measures memory here."""

    cost: StepCost
    cache: CacheConfig
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    depth: int = 1
    fast_forward: bool = True
    """Skip planning where nothing can be decided; off, each step is planned, with the same outcome."""

    def __post_init__(self) -> None:
        if self.cache.num_blocks is None:
            raise ConfigError("num_blocks must be given: a simulated engine has no memory to measure")


@dataclass(slots=True)
class Usage:
    """What a replica did; ``…_seconds`` are integrals over time."""

    num_steps: int = 0
    num_planned_steps: int = 0
    """Of these, planned one by one; the others were skipped."""
    running_seconds: float = 0.0
    """Sequences in steps times seconds."""
    held_seconds: float = 0.0
    """Blocks held times seconds."""
    max_running: int = 0
    max_waiting: int = 0
    max_held: int = 0
    num_requests: int = 0
    """Requests done here."""
    num_preemptions: int = 0


class Replica:
    """An engine with its own virtual clock."""

    def __init__(self, number: int, setup: EngineSetup, gaps: Gaps, now: float) -> None:
        self.number = number
        self.born_s = now
        self.gone_s: float | None = None
        self.draining = False
        self.requests: dict[str, Request] = {}
        """Under way here, as far as anybody outside has heard."""
        self.until_s: float | None = None
        """When to call ``turn`` next; None: when there is something to do."""
        self.version = 0
        """Counts changes of ``until_s``, by which an appointment that was moved is known."""
        self.usage = Usage()
        self._clock = VirtualClock(now)
        cache = setup.cache
        assert cache.num_blocks is not None
        self.cache = ReceivingCache(cache.num_blocks, cache.block_size, prefix_caching=cache.prefix_caching)
        self.scheduler = Scheduler(self.cache, setup.scheduler)
        self.executor = SimulatedExecutor(setup.cost, self._clock)
        self.engine = Engine(self.scheduler, self.executor, self._clock, depth=setup.depth)
        self._gaps = gaps
        self._fast_forward = setup.fast_forward
        self._events: StepEvents | None = None  # of the step under way
        self._began_s = now
        self._settled = False
        self._run_ids: list[str] = []
        self._run_ends: list[float] = []  # of the steps of the run under way; empty: none is
        self._run_bound = ""
        self._reach = MIN_RUN

    def add(self, request: Request, now: float) -> None:
        """Take a request in at ``now``; raises ``NeverFits`` if the pool of blocks is too small for it."""
        self.engine.add(request)
        self.requests[request.id] = request
        ends = self._run_ends
        if ends and ends[-1] > now:
            del ends[bisect_left(ends, now) + 1 :]
            self._until(ends[-1])

    def turn(self, now: float) -> list[tuple[FinishedRecord, Request]]:
        """Land what ended at ``now`` and begin what is next; returns the requests that ended."""
        finished = self._land(now)
        self._clock.advance_to(now)
        self._began_s = now
        if not (self._fast_forward and self._begin_run()):
            self._begin_step()
        return finished

    def _begin_run(self) -> bool:
        num_steps = horizon(self.scheduler, self._reach, settled=self._settled)
        if num_steps < 2:
            return False
        running = self.scheduler.running
        run = Run(self.executor.cost, tuple([s.seq_id for s in running]), tuple([s.num_planned for s in running]))
        self._run_ends = list(accumulate(run.seconds(num_steps), initial=self._began_s))[1:]
        self._run_ids = [seq.request_id for seq in running]
        self._run_bound = run.bound
        self._until(self._run_ends[-1])
        return True

    def _begin_step(self) -> None:
        if not self.engine.has_work:
            self._until(None)
            return
        self._events = events = self.engine.step()
        self._settled = settled(events)
        if events.num_sequences:
            self._until(self._clock.now())
            return
        now = self._began_s
        wait_s = self.scheduler.wake_after_s(now)  # nothing to compute: the batch is waiting to fill
        # A wait may be too short for the clock to show; time must pass all the same.
        self._until(None if wait_s is None else max(now + wait_s, math.nextafter(now, math.inf)))

    def _until(self, moment_s: float | None) -> None:
        self.until_s = moment_s
        self.version += 1

    def _land(self, now: float) -> list[tuple[FinishedRecord, Request]]:
        seconds = now - self._began_s
        if self._run_ends:
            return self._ended(self._land_run(now, seconds))
        events, self._events = self._events, None
        if events is None:
            return []
        if events.num_sequences:
            self._gaps.tokens([event[0] for event in events.tokens], now)
            self.usage.num_planned_steps += 1
            self.usage.max_waiting = max(self.usage.max_waiting, len(self.scheduler.policy))
            self._count(1, events.num_sequences, seconds)
        self.usage.num_preemptions = self.scheduler.num_preemptions
        return self._ended(events)

    def _ended(self, events: StepEvents) -> list[tuple[FinishedRecord, Request]]:
        self.usage.num_requests += len(events.finished)
        return [(record, self.requests.pop(record.request_id)) for record in events.finished]

    def _land_run(self, now: float, seconds: float) -> StepEvents:
        ends, self._run_ends = self._run_ends, []
        num_steps = len(ends)
        self._reach = min(MAX_RUN, max(MIN_RUN, 2 * num_steps))
        events = skip(self.scheduler, num_steps, now)
        self._settled = self._settled and not events.finished
        self.executor.charge(seconds, self._run_bound)
        self._gaps.run(self._run_ids, ends)
        self._count(num_steps, len(self._run_ids), seconds)
        return events

    def _count(self, num_steps: int, num_sequences: int, seconds: float) -> None:
        """The blocks held at the end count for the whole time: at most one more per sequence than on average."""
        usage, held = self.usage, self.cache.pool.num_held
        usage.num_steps += num_steps
        usage.max_running = max(usage.max_running, num_sequences)
        usage.max_held = max(usage.max_held, held)
        usage.running_seconds += num_sequences * seconds
        usage.held_seconds += held * seconds
