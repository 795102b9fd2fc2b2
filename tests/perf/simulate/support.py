"""What the simulator's tests share: a cost in closed form, small engines, random workloads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tokenmill.core.engine_config import CacheConfig, SchedulerConfig
from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import PredictedCost
from tokenmill.perf.simulate import Cluster, ClusterConfig, EngineSetup, Outcome, PoolConfig, TraceRequest


@dataclass(frozen=True)
class LinearCost:
    """Seconds = base + per token computed + per position of context read."""

    base_s: float = 4e-3
    token_s: float = 2e-5
    context_s: float = 1e-7

    def predict(self, plan: StepPlan) -> PredictedCost:
        tokens, context = sum(plan.counts), sum(plan.starts)
        return PredictedCost(self.base_s + self.token_s * tokens + self.context_s * context, "memory bandwidth")


def setup(cost: Any = None, *, num_blocks: int = 4096, prefix_caching: bool = False, **options: Any) -> EngineSetup:
    """An engine over ``LinearCost``; further options go to the scheduler's configuration."""
    fast_forward, depth = options.pop("fast_forward", True), options.pop("depth", 1)
    block_size = options.pop("block_size", 16)
    return EngineSetup(
        cost or LinearCost(),
        CacheConfig(block_size=block_size, num_blocks=num_blocks, prefix_caching=prefix_caching),
        SchedulerConfig(**options),
        depth=depth,
        fast_forward=fast_forward,
    )


def simulate(engine: EngineSetup, requests: list[TraceRequest], **pool: Any) -> Outcome:
    """One pool of ``engine``s under ``requests``."""
    return Cluster(ClusterConfig(PoolConfig(engine, **pool))).run(requests)


def random_requests(rng: random.Random, count: int, rate: float, *, shared: int = 0) -> list[TraceRequest]:
    """Poisson arrivals of mixed lengths; ``shared``: so many pieces of content that prompts may begin with."""
    found, now = [], 0.0
    for _ in range(count):
        prompt = rng.randint(1, 300)
        pieces = tuple(rng.randrange(shared) for _ in range(rng.randint(0, prompt // 32))) if shared else ()
        found.append(TraceRequest(now, prompt, rng.randint(1, 120), pieces, 32))
        now += rng.expovariate(rate)
    return found
