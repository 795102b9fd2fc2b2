"""Engines whose bottleneck is known, because it was built in: the real scheduler and loop, and steps that take what a
few lines here say. None of the cost model's own formulas is used for that, so agreement means something."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.engine.harness import ClockedExecutor, request
from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.telemetry import StepAccount, Telemetry
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.costs import Layout, formats_named
from tokenmill.perf.diagnose import Case, Diagnosis, Limits, diagnose
from tokenmill.perf.hardware import Figure, Hardware, Link
from tokenmill.perf.shape import FeedForward, GroupedAttention, Layers, ModelShape
from tokenmill.perf.terms import Deployment

NUM_LAYERS, HIDDEN, INNER, KV_HEADS, HEAD, VOCAB = 32, 4096, 14336, 8, 128, 32_000
SHAPE = ModelShape(
    "made up", HIDDEN, VOCAB, (Layers(NUM_LAYERS, GroupedAttention(32, KV_HEADS, HEAD, HEAD), FeedForward(INNER)),)
)
PARAMETERS = NUM_LAYERS * (HIDDEN * HEAD * (32 * 2 + 2 * KV_HEADS) + 3 * HIDDEN * INNER) + VOCAB * HIDDEN
"""That a token is multiplied with: 7.1e9."""
KV_BYTES = NUM_LAYERS * 2 * KV_HEADS * HEAD * 2
BLOCK = 16


@dataclass(frozen=True)
class Truth:
    """What a step really takes."""

    operations_per_s: float = 400e12
    bytes_per_s: float = 2e12
    tp: int = 1
    link_bytes_per_s: float = 450e9
    message_s: float = 2e-6
    """Latency of one all-reduce; two a layer."""
    launch_s: float = 1e-6
    """Of each of ten kernels a layer."""

    def seconds(self, plan: StepPlan) -> float:
        tokens = plan.num_tokens
        positions = sum(plan.starts) + tokens
        compute = 2 * PARAMETERS * tokens / self.tp / self.operations_per_s
        memory = (2 * PARAMETERS + KV_BYTES * positions) / self.tp / self.bytes_per_s
        messages = 0.0
        if self.tp > 1:
            sent = tokens * HIDDEN * 2 * 2 * (self.tp - 1) / self.tp
            messages = 2 * NUM_LAYERS * (self.message_s + sent / self.link_bytes_per_s)
        return max(compute, memory) + messages + 10 * NUM_LAYERS * self.launch_s

    @property
    def deployment(self) -> Deployment:
        link = Link("made up", self.link_bytes_per_s, 8)
        peaks = {"bf16": self.operations_per_s}
        measured = {
            "kernel_floor_s": Figure(self.launch_s, "as a probe would measure it", "measured"),
            "all_reduce_latency_s": Figure(self.message_s, "as a probe would measure it", "measured"),
        }
        hardware = Hardware(
            "made up", "gpu", "", "", 80e9, self.bytes_per_s, peaks, link, devices_per_node=8, observed=measured
        )
        return Deployment(SHAPE, formats_named("bf16"), Layout(tp=self.tp), hardware)


class _Executor(ClockedExecutor):
    """Begins each step ``before_s`` late: time of the host, which the executor does not count as its own."""

    before_s = 0.0

    def _run(self, plan: StepPlan) -> StepResult:
        self.clock.advance(self.before_s)
        return super()._run(plan)


@dataclass
class Built:
    """An engine to be observed, and the load on it."""

    truth: Truth = field(default_factory=Truth)
    prompts: Sequence[int] = (16,)
    answers: Sequence[int] = (200,)
    """Lengths in tokens; both are gone through in turn."""
    num_requests: int = 1
    num_blocks: int = 20_000
    host_s: float = 0.0
    """Of planning, per step."""
    text_s: float = 0.0
    """Between two steps."""
    apart_s: float = 0.0
    """Between arrivals."""
    noise: Callable[[int], float] = lambda step: 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> StepAccount:
        """Everything until the last request is done."""
        clock = VirtualClock()
        executor = _Executor(
            self.num_blocks,
            BLOCK,
            seconds=lambda plan: self.truth.seconds(plan) * self.noise(plan.step_id),
            verify=False,
        )
        executor.clock, executor.before_s = clock, self.host_s
        executor.start()
        scheduler = Scheduler(KVCache(self.num_blocks, BLOCK, prefix_caching=False), SchedulerConfig(**self.options))
        telemetry = Telemetry()
        engine = Engine(scheduler, executor, clock, telemetry=telemetry)
        arrivals = [
            (number * self.apart_s, self.prompts[number % len(self.prompts)], self.answers[number % len(self.answers)])
            for number in range(self.num_requests)
        ][::-1]
        while arrivals or engine.has_work:
            while arrivals and arrivals[-1][0] <= clock.now():
                at, prompt, answer = arrivals.pop()
                engine.add(request(str(len(arrivals)), (1,) * prompt, answer, arrival_s=at))
            if engine.step().num_tokens:
                clock.advance(self.text_s)
                continue
            waits = [wait for wait in (scheduler.wake_after_s(clock.now()),) if wait is not None]
            waits += [arrivals[-1][0] - clock.now()] if arrivals else []
            clock.advance(min(waits, default=0.0) + 1e-9)
        assert math.isclose(telemetry.account(clock.now()).wall_s, clock.now(), rel_tol=1e-6)
        return telemetry.account(clock.now())

    @property
    def limits(self) -> Limits:
        config = SchedulerConfig(**self.options)
        return Limits(config.max_seqs, config.max_step_tokens, self.num_blocks, BLOCK, config.batching)

    def diagnosed(self, account: StepAccount | None = None) -> Diagnosis:
        found = account or self.run()
        return diagnose(Case(found, self.truth.deployment, self.limits, engine="made up"), Calibration())
