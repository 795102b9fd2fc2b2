"""A real service over a fake model. Light: no HTTP client, no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import PolicyName, SchedulerConfig
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.async_service import EngineService
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.text import TextCodec
from tokenmill.engine.watchdog import STUCK_AFTER_S
from tokenmill.testing.executor import FakeExecutor

CODEC_FOLDER = Path(__file__).resolve().parents[2] / "tokenmill" / "builtin" / "story"
MAX_CONTEXT = 512
MODEL = "test/model"


class TimedExecutor(FakeExecutor):
    """Takes ``step_s`` real seconds a step; ``broken`` makes the next step raise, as a dying device would."""

    step_s = 0.0
    broken = False

    def _run(self, plan: StepPlan) -> StepResult:
        if self.broken:
            raise RuntimeError("the device is gone (secret detail)")
        time.sleep(self.step_s)
        return super()._run(plan)


def make_service(
    *,
    step_s: float = 0.0,
    num_blocks: int = 512,
    max_seqs: int = 64,
    max_step_tokens: int = 512,
    max_context: int = MAX_CONTEXT,
    policy: PolicyName = "fcfs",
    codec: TextCodec | None = None,
    executor_class: Callable[..., TimedExecutor] = TimedExecutor,
    stuck_after_s: float = STUCK_AFTER_S,
    **options: Any,
) -> tuple[EngineService, TimedExecutor]:
    codec = codec or TextCodec.load(CODEC_FOLDER)
    executor = executor_class(num_blocks, 16, vocab_size=codec.vocab_size, verify=False, **options)
    executor.step_s = step_s
    executor.start()
    scheduler = Scheduler(
        KVCache(num_blocks, 16), SchedulerConfig(max_seqs=max_seqs, max_step_tokens=max_step_tokens, policy=policy)
    )
    limits = ModelLimits(max_context, codec.vocab_size, codec.eos_token_ids, executor.hidden_size)
    engine = Engine(scheduler, executor, MonotonicClock())
    return EngineService(engine, codec, limits, model_name=MODEL, stuck_after_s=stuck_after_s), executor
