"""The real engine over a fake executor and a virtual clock, with every invariant checked after every step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.events import Failed, FinishedRecord, StepEvents
from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling
from tokenmill.core.request import CacheHints, Request
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler
from tokenmill.testing.executor import FakeExecutor


class ClockedExecutor(FakeExecutor):
    """Advances the virtual clock by each step's seconds."""

    clock: VirtualClock

    def _run(self, plan: StepPlan) -> StepResult:
        result = super()._run(plan)
        self.clock.advance(result.seconds)
        return result


def request(
    id: str,
    prompt: tuple[int, ...],
    max_new_tokens: int = 8,
    *,
    params: SamplingParams | None = None,
    arrival_s: float = 0.0,
    seed: int = 0,
    stop_token_ids: frozenset[int] = frozenset(),
    priority: int = 0,
    deadline_s: float | None = None,
    tenant: str = "default",
    cache_salt: str = "",
    cache: CacheHints | None = None,
    pooling: Pooling | None = None,
    weight: float = 1.0,
    background: bool = False,
) -> Request:
    return Request(
        id,
        prompt,
        params or SamplingParams(),
        max_new_tokens,
        stop_token_ids,
        seed,
        arrival_s,
        priority,
        deadline_s,
        tenant,
        cache_salt,
        cache or CacheHints(),
        pooling=pooling,
        weight=weight,
        background=background,
    )


@dataclass
class Rig:
    """Engine, executor and what came out of them."""

    num_blocks: int = 64
    block_size: int = 4
    depth: int = 1
    prefix_caching: bool = True
    stop_probability: float = 0.0
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.executor = ClockedExecutor(self.num_blocks, self.block_size, stop_probability=self.stop_probability)
        self.executor.clock = self.clock
        self.executor.start()
        cache = KVCache(self.num_blocks, self.block_size, prefix_caching=self.prefix_caching)
        self.scheduler = Scheduler(cache, SchedulerConfig(**self.options))
        self.engine = Engine(self.scheduler, self.executor, self.clock, depth=self.depth)
        self.requests: dict[str, Request] = {}
        self.tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.reasons: dict[tuple[str, int], str] = {}
        self.records: dict[str, FinishedRecord] = {}
        self.errors: dict[str, Exception] = {}
        self.embeddings: dict[str, bytes] = {}
        self.decisions: list = []
        self.steps: list[StepEvents] = []

    def add(self, req: Request) -> None:
        self.requests[req.id] = req
        self.engine.add(req)

    def step(self) -> StepEvents:
        events = self.engine.step()
        for request_id, index, token_ids, _, reason in events.tokens:
            self.tokens[request_id, index] += token_ids
            if reason:
                assert (request_id, index) not in self.reasons, "a choice ends once"
                self.reasons[request_id, index] = reason
        for event in events.embeddings:
            assert event.request_id not in self.embeddings, "an embedding comes once"
            self.embeddings[event.request_id] = event.values
        for decision in events.decisions:
            self.decisions.append(decision)
            if isinstance(decision, Failed):
                self.errors[decision.request_id] = decision.error
        for record in events.finished:
            assert record.request_id not in self.records, "a request ends once"
            self.records[record.request_id] = record
        self.steps.append(events)
        self.scheduler.check()
        return events

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left; the clock jumps where the engine waits for a moment."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                self.step()  # what there is to tell of requests that were given up
                return
            if self.step().num_tokens == 0 and self.engine.has_work:
                wait_s = self.scheduler.wake_after_s(self.clock.now())
                assert wait_s is not None, "the engine is stuck"
                self.clock.advance(wait_s + 1e-9)
        raise AssertionError(f"not idle after {max_steps} steps")

    def check_finished(self, request_id: str) -> None:
        """The request's choices have exactly the tokens that they would have had alone, and its account adds up."""
        req = self.requests[request_id]
        for index in range(req.num_sequences):
            expected = self.executor.expected_tokens(
                req.prompt_token_ids,
                req.max_new_tokens,
                seed=req.sequence_seed(index),
                stop_token_ids=req.stop_token_ids,
                min_tokens=req.params.min_tokens,
            )
            assert tuple(self.tokens[request_id, index]) == expected, (request_id, index)
        self.check_account(request_id)

    def check_account(self, request_id: str) -> None:
        record = self.records[request_id]
        account = record.account
        assert abs(sum(account.causes.values()) - account.total_s) < 1e-9
        assert abs(account.queue_s + account.prefill_s + account.decode_s - account.total_s) < 1e-9
        assert abs(record.finish_s - record.arrival_s - account.total_s) < 1e-9
