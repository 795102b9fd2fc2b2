"""An instance under a steady load: against single steps, the laws of queues, and the real scheduler."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.perf.plan.problems import DEVICE, PAIR, PLAIN, candidates, decoder, problem
from tokenmill.perf.calibrate import calibration_for
from tokenmill.perf.costs import Layout, Work, formats_named, kv_bytes_per_token
from tokenmill.perf.costs.speculation import expected_tokens
from tokenmill.perf.plan import parse_workload, search
from tokenmill.perf.plan.check import simulate
from tokenmill.perf.plan.predict import (
    CASES,
    STABLE,
    Instance,
    Wait,
    _poisson_at,
    _waiting_share,
    add_waits,
    seen,
    transfer_s,
)
from tokenmill.perf.plan.slo import METRICS
from tokenmill.perf.plan.workload import STATISTICS
from tokenmill.perf.roofline import predict_step

LOAD = parse_workload("input=500,output=200,rate=5")
FORMATS = formats_named("bf16")


def instance(step_tokens: int = 2048) -> Instance:
    return Instance(candidates()[0], LOAD, step_tokens)


def step(work: Work) -> float:
    calibration = calibration_for(DEVICE, "vllm", shape=decoder(), formats=FORMATS, effects=PLAIN)
    return predict_step(decoder(), FORMATS, Layout(), DEVICE, work, calibration).seconds


def test_an_idle_device_takes_what_its_steps_take() -> None:
    """One request alone: its prompt's step, then one step a token in the middle of its answer."""
    load = instance().at(1e-9)
    alone = step(Work.decode(1, 600))
    assert load.itl("mean") == pytest.approx(alone, rel=1e-6)
    assert load.itl("p99") == pytest.approx(alone, rel=1e-6)
    prompt = step(Work.decode(1, 600) + Work.prefill(500))
    assert load.ttft("mean") == pytest.approx(prompt + alone / 2, rel=0.01)
    assert load.e2e("mean") == pytest.approx(load.ttft("mean") + 199 * alone, rel=1e-6)


def test_requests_that_arrive_are_those_that_are_served() -> None:
    """Little's law: rows in flight are the rate times the steps of an answer."""
    load = instance().at(0.2)
    assert load.rate == pytest.approx(0.2 / load.step)
    assert load.batch == pytest.approx(load.rate * 199 * load.step)
    again = instance().at_rate(load.rate)
    assert again is not None
    assert again.per_step == pytest.approx(0.2, rel=1e-4)


def test_more_than_memory_holds_is_refused() -> None:
    one = instance()
    full = one.at(one.most("mean"))
    assert full.batch == pytest.approx(one.places, rel=1e-9)
    assert one.at_rate(full.rate * 1.01) is None
    assert math.isinf(full.ttft("p99"))


@pytest.mark.parametrize("workload", ["input=500,output=200,rate=5", "input=3000,output=100,rate=5"])
def test_more_load_is_never_quicker(workload: str) -> None:
    """As far as an instance is loaded: what the bisection of the search rests on."""
    one = Instance(candidates()[0], parse_workload(workload), 512)
    full = one.at(one.most("mean")).rate
    before = dict.fromkeys(((metric, statistic) for metric in METRICS for statistic in STATISTICS), 0.0)
    for i in range(60, -1, -1):
        load = one.at(one.most("mean") * 1.08**-i)
        if load.rate > STABLE * full:
            break
        for (metric, statistic), seconds in before.items():
            now = seen(load, metric, statistic)
            assert now >= seconds * 0.999, (metric, statistic)
            before[metric, statistic] = now


def test_the_interval_is_that_of_the_steps() -> None:
    one = instance()
    idle = {case: one.at(1e-9, case).itl("p99") for case in CASES}
    assert idle["high"] / idle["mean"] == pytest.approx(math.exp(1.645 * 0.1))
    assert idle["mean"] / idle["low"] == pytest.approx(math.exp(1.645 * 0.1))


def test_percentiles_rise() -> None:
    load = instance(512).at(0.3)
    for metric in METRICS:
        values = [seen(load, metric, statistic) for statistic in STATISTICS[1:]]
        assert values == sorted(values), metric


# ---- waits -----------------------------------------------------------------------------------------------


def test_an_exponential_wait_is_that_of_m_m_1() -> None:
    """P(wait > t) = ρ exp(−(1 − ρ) t/s): at ρ = 0.5 and s = 1, the 99th percentile is 2 ln 50."""
    wait = Wait("x", 0.5 / 0.5 * 1.0, 0.5)
    assert wait.at("p99") == pytest.approx(2 * math.log(50))
    assert wait.at("p50") == 0.0


def test_one_wait_alone_keeps_its_percentiles() -> None:
    wait = Wait("x", 1.0, 0.5)
    for statistic in STATISTICS:
        assert add_waits([wait, Wait("none", 0.0, 0.0)], statistic) == pytest.approx(wait.at(statistic))
    assert math.isinf(add_waits([Wait("x", math.inf, 1.0)], "p50"))


@pytest.mark.parametrize("mean", [0.01, 0.5, 3.0, 40.0, 1000.0])
def test_a_poisson_percentile(mean: float) -> None:
    count = _poisson_at(mean, 0.99)
    logs = [n * math.log(mean) - mean - math.lgamma(n + 1) for n in range(count + 1)]
    assert sum(map(math.exp, logs)) >= 0.989
    assert sum(map(math.exp, logs[:-1])) < 0.99


@pytest.mark.parametrize(("offered", "servers"), [(20, 25), (80, 100), (450, 500)])
def test_who_waits_for_a_place(offered: float, servers: int) -> None:
    """Against Erlang's C, by its recursion."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    erlang = blocked / (1 - offered / servers * (1 - blocked))
    assert _waiting_share(offered, servers) == pytest.approx(erlang, abs=0.03)


# ---- speculation and separate pools ------------------------------------------------------------------------


def test_speculation_yields_more_tokens_of_longer_steps() -> None:
    plain, drafting = candidates()
    assert (plain.drafts, drafting.drafts) == (0, 4)
    one, other = (Instance(candidate, LOAD, 2048) for candidate in (plain, drafting))
    assert other.yield_per_step() == expected_tokens(0.7, 4)
    assert other.yield_per_step("high") == expected_tokens(0.5, 4)
    assert one.step_s(1, 0, "mean") < other.step_s(1, 0, "mean") < 1.5 * one.step_s(1, 0, "mean")
    assert other.at(1e-9).tpot("mean") < one.at(1e-9).tpot("mean")


def test_a_transfer_is_the_cache_over_the_network() -> None:
    found = {one.layout: one for one in candidates(PAIR) if not one.drafts}
    held = kv_bytes_per_token(decoder(), FORMATS) * 500
    assert transfer_s(found[Layout()], found[Layout()], 500) == pytest.approx(held / 25e9, rel=0.01)
    assert transfer_s(found[Layout(tp=2)], found[Layout(tp=2)], 500) == pytest.approx(held / 50e9, rel=0.01)
    assert math.isinf(transfer_s(candidates()[0], candidates()[0], 500))  # there is no network


@pytest.mark.parametrize("workload", ["input=500,output=200,rate=4", "input=2000,output=100,rate=2"])
def test_closed_forms_are_near_the_real_scheduler(workload: str) -> None:
    plan = next(plan for plan in search(problem(workload=workload)).plans if not plan.candidate.drafts)
    load = parse_workload(workload)
    found, foreseen = simulate(plan, load), plan.under(load.rate)
    assert isinstance(found, dict)
    assert foreseen is not None
    for metric in ("itl", "tpot", "e2e"):
        assert seen(foreseen, metric, "mean") == pytest.approx(found[f"{metric}_s"]["mean"], rel=0.15), metric
    assert seen(foreseen, "itl", "p99") == pytest.approx(found["itl_s"]["p99"], rel=0.15)
    assert seen(foreseen, "ttft", "mean") == pytest.approx(found["ttft_s"]["mean"], rel=0.5)


def test_pools_of_their_own_under_the_real_scheduler() -> None:
    network = replace(DEVICE, name="Networked", internode_bytes_per_s=50e9)
    plans = search(problem(hardware=(network,), top=50)).plans
    plan = next(plan for plan in plans if len(plan.pools) == 2)
    found, foreseen = simulate(plan, LOAD), plan.under(LOAD.rate)
    assert isinstance(found, dict)
    assert foreseen is not None
    assert seen(foreseen, "e2e", "mean") == pytest.approx(found["e2e_s"]["mean"], rel=0.15)
    assert seen(foreseen, "itl", "p50") == pytest.approx(found["itl_s"]["p50"], rel=0.15)
