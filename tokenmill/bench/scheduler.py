"""What deciding costs: the real scheduler and engine loop under a virtual clock, with an executor that does nothing.

Every microsecond measured here is host time that a serving engine spends per step beside the model. The load
is steady: as soon as a sequence ends another is admitted, so the batch stays at its size. Reported are
microseconds per step and per running sequence, median and mean over steps; admission and ends are part of both.
The executor's own time is taken off, and so is what reading the clock costs: this thread's processor time is asked
of the operating system four times a step, and of these readings two fall into what is measured.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler

Progress = Callable[[int, int], None]
"""(requests done, of how many)"""

BLOCK_SIZE = 16
STEP_S = 0.01


@dataclass(slots=True)
class _Done:
    value: StepResult

    def result(self) -> StepResult:
        return self.value


class NullExecutor:
    """Answers every plan at once with token 1 for each row that reaches the end of what is known."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._known: dict[int, int] = {}
        self.seconds_inside = 0.0
        """Host time of this executor itself, to be taken off."""

    def start(self) -> None:
        """Nothing to prepare."""

    def submit(self, plan: StepPlan) -> _Done:
        begin = time.thread_time()
        known = self._known
        for seq_id in plan.dropped:
            del known[seq_id]
        for new in plan.new:
            known[new.seq_id] = len(new.token_ids)
        sampled = [
            seq_id
            for seq_id, start, count in zip(plan.seq_ids, plan.starts, plan.counts, strict=True)
            if start + count == known[seq_id]
        ]
        for seq_id in sampled:
            known[seq_id] += 1
        self._clock.advance(STEP_S)
        result = StepResult(plan.step_id, tuple(sampled), ((1,),) * len(sampled), seconds=STEP_S)
        self.seconds_inside += time.thread_time() - begin
        return _Done(result)

    def close(self) -> None:
        """Nothing to release."""


def run(
    *,
    batch_sizes: tuple[int, ...] = (1, 64, 256),
    num_requests: int = 100_000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Share ``num_requests`` over the batch sizes; returns one row per size."""
    share = num_requests // len(batch_sizes)
    rows = []
    for i, batch_size in enumerate(batch_sizes):
        rows.append(measure(batch_size, share, partial(_report, progress, i * share, num_requests)))
    return {"benchmark": "scheduler", "num_requests": share * len(batch_sizes), "rows": rows}


def _report(progress: Progress | None, before: int, total: int, finished: int) -> None:
    if progress:
        progress(before + finished, total)


def measure(batch_size: int, num_requests: int, progress: Callable[[int], object] = lambda n: None) -> dict[str, Any]:
    """Keep ``batch_size`` sequences running until ``num_requests`` have ended."""
    clock = VirtualClock()
    executor = NullExecutor(clock)
    cache = KVCache(batch_size * 32, BLOCK_SIZE)
    scheduler = Scheduler(cache, SchedulerConfig(max_seqs=batch_size, max_step_tokens=max(512, 2 * batch_size)))
    engine = Engine(scheduler, executor, clock)
    rng = random.Random(0)
    added = finished = 0
    step_s: list[float] = []
    sequences = 0
    clock_s = 2 * _reading_s()
    while finished < num_requests:
        while added < num_requests and added - finished < 2 * batch_size:
            engine.add(_request(added, rng, clock.now()))
            added += 1
        inside = executor.seconds_inside
        begin = time.thread_time()
        events = engine.step()
        step_s.append(time.thread_time() - begin - (executor.seconds_inside - inside) - clock_s)
        sequences += events.num_sequences
        finished += len(events.finished)
        if len(step_s) % 1000 == 0:
            progress(finished)
    scheduler.check()
    return _row(batch_size, num_requests, step_s, sequences)


def _reading_s() -> float:
    """Seconds that one reading of the clock takes."""
    readings = [time.thread_time() for _ in range(1001)]
    return statistics.median(after - before for before, after in pairwise(readings))


def _row(batch_size: int, num_requests: int, step_s: list[float], sequences: int) -> dict[str, Any]:
    total_s = sum(step_s)
    median_s = statistics.median(step_s)
    return {
        "batch": batch_size,
        "requests": num_requests,
        "steps": len(step_s),
        "mean_batch": sequences / len(step_s),
        "us_per_step_median": median_s * 1e6,
        "us_per_step_mean": total_s / len(step_s) * 1e6,
        "us_per_sequence_step_median": median_s / batch_size * 1e6,
        "us_per_sequence_step_mean": total_s / sequences * 1e6,
    }


def _request(number: int, rng: random.Random, now: float) -> Request:
    """Short prompts, answers of 32 to 256 tokens; no two prompts share a block."""
    prompt = (number % 50_000, number // 50_000, *range(rng.randrange(8, 60)))
    return Request(f"r{number}", prompt, _PARAMS, rng.randrange(32, 257), frozenset({0}), number, now)


_PARAMS = SamplingParams()
