"""The engine's loop: plan, execute, commit.

One loop with a depth. At depth 1 each step is planned after the last one's result; at depth 2 step n+1 is
planned and handed over while step n runs. The scheduler decides, the executor does, and neither knows the
other. Driven by a real executor and the machine's clock this serves; driven by a cost model and a virtual
clock it simulates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tokenmill.core.clock import Clock
from tokenmill.core.events import StepEvents
from tokenmill.core.request import Request
from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import Executor, Pending
from tokenmill.engine.faults import fire
from tokenmill.engine.journal import JournalWriter
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.telemetry import Telemetry


class Engine:
    """Drives a scheduler and an executor. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        *,
        depth: int = 1,
        journal: JournalWriter | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.telemetry = telemetry
        """Told of every step, if it is there."""
        self.scheduler = scheduler
        self.executor = executor
        self.clock = clock
        self.depth = depth
        self.on_plan: Callable[[StepPlan], None] | None = None
        """Called with each plan before it is handed over, if it is there."""
        self._journal = journal
        self._latest: StepPlan | None = None
        self._in_flight: deque[tuple[StepPlan, Pending]] = deque()

    @property
    def has_work(self) -> bool:
        """Requests are under way, or steps in flight."""
        return self.scheduler.has_requests or bool(self._in_flight)

    def add(self, request: Request) -> None:
        """Take a request in; raises ``RequestError`` if it can never be done."""
        self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """Give a request up; its blocks are free at once."""
        self.scheduler.abort(request_id, self.clock.now())

    def stop(self, request_id: str, index: int) -> None:
        """One choice is complete (a stop string was found in its text)."""
        self.scheduler.stop(request_id, index, self.clock.now())

    def step(self) -> StepEvents:
        """Fill the pipe with plans, wait for the oldest, commit it. With nothing to do, tells what there is to tell."""
        telemetry = self.telemetry
        if telemetry:
            telemetry.began(self.clock.now())
        while len(self._in_flight) < self.depth:
            now = self.clock.now()
            plan = self.scheduler.plan(now)
            if plan.empty:
                break
            if self._journal:
                self._journal.plan(plan, now, self.scheduler.arrivals(plan))
            if self.on_plan:
                self.on_plan(plan)
            self._latest = plan
            fire("executor.submit", plan)
            self._in_flight.append((plan, self.executor.submit(plan)))
        if telemetry:
            telemetry.planned(self.scheduler.blocked_by, len(self.scheduler.policy))
        if not self._in_flight:
            if telemetry:
                telemetry.nothing(self.clock.now())
            return self.scheduler.take_events()
        plan, pending = self._in_flight.popleft()
        result = pending.result()
        if self._journal:
            self._journal.result(result)
        events = self.scheduler.commit(plan, result, self.clock.now())
        if telemetry:
            telemetry.ended(plan, result, events, self.clock.now(), self.scheduler.num_preemptions, more=self.has_work)
        return events

    def expected_s(self) -> float:
        """How long the latest step was foreseen to take; 0: not known. Any thread may ask."""
        plan, telemetry = self._latest, self.telemetry
        return 0.0 if plan is None or telemetry is None else telemetry.expected_s(plan)

    def close(self) -> None:
        """Release the executor and the journal."""
        self.executor.close()
        if self._journal:
            self._journal.close()
