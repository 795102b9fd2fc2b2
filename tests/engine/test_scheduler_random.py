"""Scheduler and pool under random traffic: whatever happens, tokens are what each request gets alone (CC-09).

The fake executor compares every KV entry that a row reads with the row's own history, and the harness runs
``Scheduler.check`` after every step; together they would see a lost block, a shared write, a stale prefix.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.engine.harness import Rig, request
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import CacheHints, Request

STOP = 7


def random_request(rng: random.Random, name: str, now: float) -> Request:
    """Prompts drawn from few stems, so that prefixes are shared, at and around block edges."""
    stem = [rng.randrange(3)] * 40
    prompt = (*stem[: rng.randrange(0, 24)], *(rng.randrange(100) for _ in range(rng.randrange(1, 6))))
    n = rng.choice((1, 1, 1, 2, 4))
    return request(
        name,
        prompt,
        rng.randrange(0, 14),
        params=SamplingParams(n=n, prompt_logprobs=rng.choice((None, None, None, 1))),
        arrival_s=now,
        seed=rng.randrange(5),
        stop_token_ids=frozenset({STOP}),
        priority=rng.randrange(3),
        deadline_s=now + rng.random() * 0.5 if rng.random() < 0.05 else None,
        tenant=rng.choice("abc"),
        background=rng.random() < 0.3,
        cache_salt=rng.choice(("", "", "other")),
        cache=CacheHints(rng.randrange(2), rng.choice((None, 0.01)), rng.random() < 0.1),
    )


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "priority", "deadline", "fair"])
@pytest.mark.parametrize("depth", [1, 3])
def test_random_traffic(policy: str, depth: int) -> None:
    """100,000 steps over all policies and depths: adds, aborts, stops, forced preemptions."""
    rng = random.Random(f"{policy}{depth}")
    rig = Rig(
        num_blocks=24,
        block_size=rng.choice((1, 4, 8)),
        depth=depth,
        stop_probability=0.05,
        options={"policy": policy, "max_seqs": 8, "max_step_tokens": 16},
    )
    num_steps = num_added = 0
    touched: set[str] = set()
    while num_steps < 10_000:
        while rig.scheduler.num_waiting < 6 and rng.random() < 0.6:
            req = random_request(rng, f"r{num_added}", rig.clock.now())
            if rig.scheduler.cache.num_blocks_for(len(req.prompt_token_ids) + req.max_new_tokens) <= 24:
                rig.add(req)
                num_added += 1
        if rig.scheduler.running and rng.random() < 0.1:
            rig.scheduler.preempt(rng.choice(rig.scheduler.running), rig.clock.now())
        if rig.requests and rng.random() < 0.05:
            name = rng.choice(list(rig.requests))
            touched.add(name)
            rng.choice((rig.engine.abort, lambda name: rig.engine.stop(name, 0)))(name)
        rig.step()
        num_steps += 1
    rig.run()
    assert num_added > 100
    for name in rig.requests:
        if name not in touched and name not in rig.errors:
            rig.check_finished(name)
        rig.check_account(name)
    assert set(rig.records) == set(rig.requests), "a request was lost"
    assert rig.scheduler.cache.pool.num_held == 0


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis looks for an order of events that breaks an invariant, and shrinks it."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(num_blocks=10, block_size=2, depth=2, stop_probability=0.1, options={"max_seqs": 4})
        self.num_added = 0
        self.touched: set[str] = set()

    @rule(
        stem=st.integers(0, 1),
        length=st.integers(1, 9),
        tail=st.integers(0, 3),
        max_new=st.integers(0, 6),
        n=st.sampled_from((1, 1, 2, 3)),
    )
    def add(self, stem: int, length: int, tail: int, max_new: int, n: int) -> None:
        prompt = (stem,) * length + (tail,)
        name = f"r{self.num_added}"
        self.num_added += 1
        self.rig.add(
            request(
                name,
                prompt,
                max_new,
                params=SamplingParams(n=n),
                arrival_s=self.rig.clock.now(),
                stop_token_ids=frozenset({STOP}),
            )
        )

    @rule()
    def step(self) -> None:
        self.rig.step()

    @precondition(lambda self: self.rig.scheduler.num_running)
    @rule(which=st.integers(0, 3))
    def preempt(self, which: int) -> None:
        running = self.rig.scheduler.running
        self.rig.scheduler.preempt(running[which % len(running)], self.rig.clock.now())

    @precondition(lambda self: self.rig.requests)
    @rule(which=st.integers(0, 50))
    def abort(self, which: int) -> None:
        name = list(self.rig.requests)[which % len(self.rig.requests)]
        self.touched.add(name)
        self.rig.engine.abort(name)

    @rule()
    def forget_cached(self) -> None:
        self.rig.scheduler.cache.pool.clear_cached()

    @invariant()
    def holds(self) -> None:
        self.rig.scheduler.check()

    def teardown(self) -> None:
        self.rig.run()
        for name in self.rig.requests:
            if name not in self.touched:
                self.rig.check_finished(name)
        assert set(self.rig.records) == set(self.rig.requests)
        assert self.rig.scheduler.cache.pool.num_held == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
