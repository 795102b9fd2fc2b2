"""Skipping what cannot be decided changes nothing: every moment and every decision is that of planning each step."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.perf.simulate.support import LinearCost, random_requests, setup
from tokenmill.core.events import Evicted, StepEvents
from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import PredictedCost
from tokenmill.engine.engine import Engine
from tokenmill.perf.simulate import Cluster, ClusterConfig, Outcome, PoolConfig, TraceRequest, TransferCost
from tokenmill.perf.simulate.pricing import Run

CASES: list[dict[str, Any]] = [
    {},
    {"max_seqs": 3},
    {"max_seqs": 1},
    {"num_blocks": 40, "max_seqs": 16},
    {"num_blocks": 40, "max_seqs": 16, "prefix_caching": True},
    {"num_blocks": 60, "prefix_caching": True, "shared": 6},
    {"num_blocks": 2000, "prefix_caching": True, "shared": 3, "block_size": 8},
    {"max_step_tokens": 8, "max_seqs": 8},
    {"max_step_tokens": 4, "max_seqs": 8, "num_blocks": 64},
    {"policy": "sjf", "max_seqs": 4, "num_blocks": 80},
    {"policy": "fair", "num_blocks": 60},
    {"batching": "static", "max_seqs": 4},
    {"batching": "dynamic", "max_seqs": 4, "batch_wait_s": 0.3},
    {"itl_slo_s": 0.006, "num_blocks": 100},
    {"preemption": "refuse", "num_blocks": 45},
    {"depth": 2, "num_blocks": 100},
]


class KinkedCost(LinearCost):
    """Bound by something else in short contexts than in long ones: convex, with a bend."""

    def predict(self, plan: StepPlan) -> PredictedCost:
        flat, steep = super().predict(plan).seconds, 1e-6 * sum(plan.starts) + 2e-3
        return PredictedCost(max(flat, steep), "compute" if steep > flat else "memory bandwidth")


class Watched(Engine):
    """Notes what was decided, and when."""

    log: list[tuple[str, object]] = []  # noqa: RUF012

    def step(self) -> StepEvents:
        events = super().step()
        moment = f"{self.clock.now():.7f}"
        Watched.log += [(moment, one) for one in events.decisions if not isinstance(one, Evicted)]
        return events


def run(
    monkeypatch: pytest.MonkeyPatch, config: ClusterConfig, requests: list[TraceRequest]
) -> tuple[Outcome, list[tuple[str, object]]]:
    monkeypatch.setattr("tokenmill.perf.simulate.replica.Engine", Watched)
    Watched.log = []
    outcome = Cluster(config, keep_gaps=True).run(requests)
    return outcome, Watched.log


def both(
    monkeypatch: pytest.MonkeyPatch, requests: list[TraceRequest], cost: Any, replicas: int, case: dict[str, Any]
) -> tuple[Outcome, Outcome]:
    found = []
    for fast in (True, False):
        engine = setup(cost, fast_forward=fast, **case)
        found.append(run(monkeypatch, ClusterConfig(PoolConfig(engine, replicas)), requests))
    (quick, quick_log), (plain, plain_log) = found
    assert [(moment, repr(one)) for moment, one in quick_log] == [(moment, repr(one)) for moment, one in plain_log]
    return quick, plain


def assert_same(quick: Outcome, plain: Outcome) -> None:
    assert len(quick.served) == len(plain.served)
    for a, b in zip(quick.served, plain.served, strict=True):
        assert (a.error, a.cached_tokens, a.num_preemptions) == (b.error, b.cached_tokens, b.num_preemptions)
        assert a.finish_s == pytest.approx(b.finish_s, abs=1e-7)
        if b.first_token_s is not None:
            assert a.first_token_s == pytest.approx(b.first_token_s, abs=1e-7)
        assert a.queue_s == pytest.approx(b.queue_s, abs=1e-6)
        assert list(a.gaps_s or ()) == pytest.approx(list(b.gaps_s or ()), abs=1e-7)
    for fast, slow in zip(*(o.pools["serve"].replicas.values() for o in (quick, plain)), strict=True):
        assert fast.usage.num_steps == slow.usage.num_steps == slow.usage.num_planned_steps
        assert fast.cache.num_hit_tokens == slow.cache.num_hit_tokens
        assert fast.cache.pool.num_evicted == slow.cache.pool.num_evicted
        assert fast.executor.busy_s == pytest.approx(slow.executor.busy_s)
        fast.scheduler.check()


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: ",".join(f"{k}={v}" for k, v in CASES[i].items()))
def test_skipping_changes_nothing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = dict(CASES[number])
    shared = case.pop("shared", 0)
    rng = random.Random(number)
    for rate in (2.0, 12.0, 60.0):
        requests = random_requests(rng, 40, rate, shared=shared)
        assert_same(*both(monkeypatch, requests, LinearCost(), 1, case))


def test_skipping_saves_most_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, _ = both(monkeypatch, random_requests(random.Random(1), 60, 4.0), LinearCost(), 1, {})
    usage = quick.pools["serve"].replicas[0].usage
    assert usage.num_planned_steps < usage.num_steps / 5


def test_skipping_changes_nothing_with_a_bend_in_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = random_requests(random.Random(5), 80, 10.0)
    assert_same(*both(monkeypatch, requests, KinkedCost(), 1, {"num_blocks": 100}))


def test_skipping_changes_nothing_over_many_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = random_requests(random.Random(6), 120, 40.0)
    quick, plain = both(monkeypatch, requests, LinearCost(), 3, {"num_blocks": 60})
    assert_same(quick, plain)


def test_skipping_changes_nothing_between_prefill_and_decode_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = random_requests(random.Random(7), 60, 10.0)
    found = []
    for fast in (True, False):
        pool = PoolConfig(setup(fast_forward=fast, num_blocks=90))
        config = ClusterConfig(pool, pool, TransferCost(1e5, 1e9, 1e-3))
        found.append(run(monkeypatch, config, requests)[0])
    for a, b in zip(*(outcome.served for outcome in found), strict=True):
        assert a.finish_s == pytest.approx(b.finish_s, abs=1e-7)
        assert a.first_token_s == pytest.approx(b.first_token_s, abs=1e-7)


@pytest.mark.parametrize("cost", [LinearCost(), KinkedCost()])
def test_a_run_is_priced_as_its_steps_are(cost: LinearCost) -> None:
    starts = (100, 350, 20)
    wanted = [
        cost.predict(StepPlan(0, (0, 1, 2), tuple(start + i for start in starts), (1, 1, 1))).seconds
        for i in range(5000)
    ]
    assert Run(cost, (0, 1, 2), starts).seconds(5000) == pytest.approx(wanted, rel=1e-6)
