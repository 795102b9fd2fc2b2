"""Many engines: routing, prefill and decode pools, scaling, dying, and the same again when run again."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.perf.simulate.support import LinearCost, random_requests, setup, simulate
from tokenmill.core.errors import ConfigError
from tokenmill.engine.routing import ScalingConfig
from tokenmill.perf.metrics import SLO
from tokenmill.perf.result import missing_in
from tokenmill.perf.simulate import (
    Cluster,
    ClusterConfig,
    EngineSetup,
    Failure,
    Outcome,
    PoolConfig,
    Trace,
    TraceRequest,
    TransferCost,
    make_trace,
)
from tokenmill.perf.simulate.report import Economics, finite, make_report

ENGINE = setup(num_blocks=200)


def requests(count: int = 150, rate: float = 40.0, seed: int = 1) -> list[TraceRequest]:
    return random_requests(random.Random(seed), count, rate)


def report(config: ClusterConfig, trace: Trace, slo: SLO | None = None, keep_gaps: bool = True) -> dict[str, Any]:
    outcome = Cluster(config, keep_gaps=keep_gaps).run(trace.requests)
    return make_report(outcome, trace, slo or SLO(ttft_s=0.1, itl_s=0.02), Economics(2, 3.0, 700.0))


EVERYTHING = ClusterConfig(
    PoolConfig(
        ENGINE, 2, "prefix", ScalingConfig(1, 4, target_requests=3, interval_s=0.5, up_after_s=0.5, cold_start_s=1)
    ),
    PoolConfig(ENGINE, 2),
    TransferCost(1e5, 1e9, 1e-3, overlap=True),
    (Failure(1.0, 0, 0.5), Failure(1.5, 3, None)),
)


def test_two_runs_are_the_same_to_the_last_digit() -> None:
    trace = make_trace("t", "synthetic", random_requests(random.Random(2), 200, 50.0, shared=5))
    first, second = (json.dumps(report(EVERYTHING, trace), allow_nan=False) for _ in range(2))
    assert first == second


def test_everything_at_once_serves_everybody() -> None:
    trace = make_trace("t", "synthetic", requests(200, 50.0))
    found = report(EVERYTHING, trace)
    assert found["requests"]["completed"] == 200
    assert found["events"]["failures"] == 2
    assert found["events"]["restarts"] > 0
    assert found["events"]["transfers"] >= 200 - sum(r.output_tokens == 1 for r in trace.requests)
    assert missing_in(found) == []
    assert len(found["replicas"]) == sum(pool["replicas_started"] for pool in found["pools"].values())


@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "prefix", "session"])
def test_every_router_serves_everybody(router: str) -> None:
    outcome = simulate(ENGINE, requests(), replicas=3, router=router)
    assert all(served.done for served in outcome.served)
    shares = [replica.usage.num_requests for replica in outcome.pools["serve"].replicas.values()]
    assert sum(shares) == 150
    assert router == "session" or min(shares) > 20  # all requests are of one tenant


def test_more_replicas_wait_less() -> None:
    means = []
    for replicas in (1, 2, 4):
        served = simulate(ENGINE, requests(200, 60.0), replicas=replicas).served
        means.append(sum(one.queue_s for one in served) / len(served))
    assert means[0] > means[1] > means[2]


# ---- prefill and decode apart ----------------------------------------------------------------------------


def one_through(transfer: TransferCost, output: int = 5) -> Outcome:
    config = ClusterConfig(PoolConfig(ENGINE), PoolConfig(ENGINE), transfer)
    return Cluster(config, keep_gaps=True).run([TraceRequest(0.0, 100, output)])


def test_a_prompt_s_keys_and_values_take_the_link_s_time() -> None:
    cost = LinearCost()
    prompt_s = cost.base_s + 100 * cost.token_s
    (served,) = one_through(TransferCost(1e6, 1e9, 0.5)).served
    gaps = list(served.gaps_s or ())
    assert served.first_token_s == pytest.approx(prompt_s)
    assert gaps[0] == pytest.approx(100e6 / 1e9 + 0.5 + cost.base_s + cost.token_s + 100 * cost.context_s)
    assert gaps[1] == pytest.approx(cost.base_s + cost.token_s + 101 * cost.context_s)
    assert len(gaps) == 4


def test_overlap_hides_what_the_prompt_s_computing_covers() -> None:
    plain, hidden = (one_through(TransferCost(1e4, 1e9, 1e-4, overlap)).served[0] for overlap in (False, True))
    assert plain.finish_s is not None and hidden.finish_s is not None
    assert plain.finish_s - hidden.finish_s == pytest.approx(1e-3)


def test_the_decode_pool_computes_no_prompts() -> None:
    trace = requests(50, 20.0)
    config = ClusterConfig(PoolConfig(ENGINE), PoolConfig(setup(num_blocks=2000), 2), TransferCost(1e4, 1e10))
    outcome = Cluster(config).run(trace)
    answers = list(outcome.pools["decode"].replicas.values())
    steps_s = sum(replica.executor.busy_s for replica in answers)
    tokens = sum(max(one.output_tokens - 1, 0) for one in trace)
    assert sum(r.usage.num_requests for r in answers) == sum(one.output_tokens > 1 for one in trace)
    assert steps_s < tokens * (LinearCost().base_s + LinearCost().token_s + 450 * LinearCost().context_s)


def test_one_token_needs_no_second_pool() -> None:
    outcome = one_through(TransferCost(1e6, 1e3), output=1)
    assert outcome.served[0].done and outcome.num_transfers == 0


def test_one_sender_s_transfers_queue() -> None:
    transfer = TransferCost(1e6, 1e9)
    free_s, there_s = transfer.end_s(100, 0.0, 0.0, 1.0)
    assert (free_s, there_s) == (1.1, 1.1)
    assert transfer.end_s(100, free_s, 0.0, 1.05)[1] == pytest.approx(1.2)


# ---- nodes die and come ----------------------------------------------------------------------------------


def test_a_dead_node_s_requests_begin_anew_elsewhere() -> None:
    trace = requests()
    config = ClusterConfig(PoolConfig(ENGINE, 2), failures=(Failure(1.0, 1),))
    outcome = Cluster(config).run(trace)
    restarted = [served for served in outcome.served if served.num_restarts]
    assert all(served.done for served in outcome.served)
    assert restarted and all(s.arrival_s <= 1.0 < (s.first_token_s or 0.0) for s in restarted)
    dead = outcome.pools["serve"].gone[0]
    assert (dead.number, dead.gone_s) == (1, 1.0)
    survivor = outcome.pools["serve"].replicas[0]
    assert survivor.usage.num_requests + dead.usage.num_requests == len(trace)


def test_without_any_node_left_requests_fail_and_are_counted() -> None:
    trace = make_trace("t", "synthetic", requests())
    config = ClusterConfig(PoolConfig(ENGINE), failures=(Failure(1.0, 0),))
    found = report(config, trace)
    assert found["requests"]["failed"] > 0
    assert found["requests"]["failed"] + found["requests"]["completed"] == 150
    assert list(found["errors"]) == ["no replica was left"]


def test_a_fresh_node_takes_the_place_of_a_dead_one() -> None:
    config = ClusterConfig(PoolConfig(ENGINE), failures=(Failure(1.0, 0, 2.0),))
    outcome = Cluster(config).run(requests())
    assert all(served.done for served in outcome.served)
    assert not [s for s in outcome.served if s.first_token_s is not None and 1.0 < s.first_token_s < 3.0]


def test_a_request_that_can_never_fit_fails_alone() -> None:
    trace = [TraceRequest(0.0, 100, 10), TraceRequest(0.1, 50_000, 10), TraceRequest(0.2, 100, 10)]
    outcome = simulate(ENGINE, trace)
    assert [served.done for served in outcome.served] == [True, False, True]
    assert "KV blocks" in (outcome.served[1].error or "")


# ---- scaling ---------------------------------------------------------------------------------------------


def scaled(scaling: ScalingConfig, replicas: int, trace: list[TraceRequest]) -> Outcome:
    return Cluster(ClusterConfig(PoolConfig(setup(max_seqs=4), replicas, scaling=scaling))).run(trace)


def test_load_brings_replicas_after_a_cold_start_and_quiet_lets_them_go() -> None:
    scaling = ScalingConfig(1, 3, target_requests=2, interval_s=0.5, up_after_s=1.0, down_after_s=2.0, cold_start_s=3.0)
    busy = requests(200, 40.0)
    quiet = [TraceRequest(busy[-1].arrival_s + 5 + i, 10, 5) for i in range(20)]
    outcome = scaled(scaling, 1, busy + quiet)
    pool = outcome.pools["serve"]
    everyone = [*pool.gone, *pool.replicas.values()]
    assert all(served.done for served in outcome.served)
    assert pool.num_cold_starts == 2 and pool.num_ready == 1
    assert len(everyone) == 3 and all(replica.usage.num_requests for replica in everyone)


def test_an_idle_pool_scales_to_zero_and_back() -> None:
    scaling = ScalingConfig(0, 2, target_requests=4, interval_s=1.0, down_after_s=3.0, cold_start_s=2.0)
    outcome = scaled(scaling, 0, [TraceRequest(0.0, 10, 5), TraceRequest(30.0, 10, 5)])
    first, second = outcome.served
    assert first.first_token_s == pytest.approx(2.0 + 4.2e-3, abs=1e-3)
    assert second.first_token_s == pytest.approx(32.0 + 4.2e-3, abs=1e-3)
    assert outcome.pools["serve"].num_cold_starts == 2


# ---- prefixes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [16, 512])
def test_prefix_hits_are_those_of_an_infinite_cache(block_size: int) -> None:
    rng = random.Random(4)
    trace, seen, hits = [], set(), 0
    for number in range(150):
        stem = tuple(range(rng.randrange(1, 12)))
        pieces = (*stem, *(1000 + 10 * number + i for i in range(rng.randrange(3))))
        prompt = len(pieces) * 512 - rng.randrange(511)
        trace.append(TraceRequest(number * 100.0, prompt, 3, pieces, 512))
        known = 0  # whole pieces found, but never the prompt's last token
        while known < (prompt - 1) // 512 and pieces[: known + 1] in seen:
            known += 1
        hits += known * 512
        seen |= {pieces[: i + 1] for i in range(prompt // 512)}
    outcome = simulate(setup(num_blocks=2**22 // block_size, block_size=block_size, prefix_caching=True), trace)
    found = outcome.pools["serve"].replicas[0].cache.num_hit_tokens
    if block_size == 512:
        assert found == hits
    else:  # finer blocks also find part of a piece, where a prompt ends inside one
        assert hits <= found < hits + 150 * 512
    assert found == sum(served.cached_tokens for served in outcome.served)


def test_prefix_routing_finds_more_than_taking_turns() -> None:
    trace = random_requests(random.Random(8), 200, 30.0, shared=4)
    shares = []
    for router in ("round_robin", "prefix"):
        outcome = simulate(setup(num_blocks=4000, prefix_caching=True), trace, replicas=4, router=router)
        shares.append(sum(served.cached_tokens for served in outcome.served))
    assert shares[1] > shares[0]


# ---- configuration and report ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: PoolConfig(ENGINE, 0), "replicas"),
        (lambda: PoolConfig(ENGINE, 9, scaling=ScalingConfig(1, 8)), "replicas"),
        (lambda: ScalingConfig(5, 4), "min"),
        (lambda: ScalingConfig(cold_start_s=-1.0), "cold"),
        (lambda: ClusterConfig(PoolConfig(ENGINE), PoolConfig(ENGINE)), "transfer"),
        (lambda: ClusterConfig(PoolConfig(ENGINE), failures=(Failure(1.0, 1),)), "replica 1"),
        (lambda: TransferCost(1.0, 0.0), "bandwidth"),
        (lambda: Cluster(ClusterConfig(PoolConfig(ENGINE, router="dice"))), "dice"),
    ],
)
def test_impossible_configurations_are_refused(build: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build()


def test_the_pool_of_blocks_must_be_given() -> None:
    from tokenmill.core.engine_config import CacheConfig

    with pytest.raises(ConfigError, match="num_blocks"):
        EngineSetup(LinearCost(), CacheConfig())


def test_a_limit_on_gaps_is_judged_by_each_request_s_own() -> None:
    trace = make_trace("t", "synthetic", requests(60, 20.0))
    config = ClusterConfig(PoolConfig(ENGINE))
    outcome = Cluster(config, keep_gaps=True).run(trace.requests)
    gaps = sorted(gap for served in outcome.served for gap in served.gaps_s or ())
    limit = gaps[int(0.97 * len(gaps))]
    good = sum(SLO(itl_s=limit).met_by(served.timeline()) for served in outcome.served)
    assert 0 < good < 60
    assert report(config, trace, SLO(itl_s=limit))["goodput"]["share"] == good / 60
    summary = outcome.gaps.histogram.summary()
    assert summary["mean"] == pytest.approx(sum(gaps) / len(gaps))
    assert summary["p99"] == pytest.approx(gaps[round(0.99 * (len(gaps) - 1))], rel=5e-3)
    assert summary["max"] == pytest.approx(gaps[-1])


def test_no_number_that_is_none_reaches_a_report() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": {"c": float("inf")}}) == {"a": [None, 1.0], "b": {"c": None}}
    nobody = report(ClusterConfig(PoolConfig(ENGINE)), make_trace("t", "synthetic", [TraceRequest(0.0, 10**6, 1)]))
    text = json.dumps(nobody, allow_nan=False)
    assert '"completed": 0' in text and nobody["latency"]["ttft_s"] == {}


def test_cost_counts_every_device_for_as_long_as_it_is_kept() -> None:
    trace = make_trace("t", "synthetic", requests())
    found = report(ClusterConfig(PoolConfig(ENGINE, 3)), trace)
    hours = 3 * 2 * found["window"]["duration_s"] / 3600
    assert found["cost"]["device_hours"] == pytest.approx(hours)
    assert found["cost"]["price"] == pytest.approx(hours * 3.0)
    assert found["cost"]["energy_wh"]["always_at_tdp"] == pytest.approx(hours * 700.0)
    assert found["cost"]["energy_wh"]["busy_at_tdp"] < found["cost"]["energy_wh"]["always_at_tdp"]
