"""What queueing theory says, the simulator must say too. Seeds are fixed, so that chance decides nothing here."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from tests.perf.simulate.support import LinearCost, random_requests, setup, simulate
from tokenmill.perf.simulate import Outcome, TraceRequest

STEP_S = 0.01
SERVER = setup(LinearCost(STEP_S, 0.0, 0.0), max_seqs=1)
"""One request at a time, a hundredth of a second per token: a queue with one server."""


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + rng.expovariate(rate))
    return times


def waits(outcome: Outcome) -> list[float]:
    """From arrival until the first step begins."""
    assert all(served.done and served.first_token_s is not None for served in outcome.served)
    return [(served.first_token_s or 0.0) - STEP_S - served.arrival_s for served in outcome.served]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_constant_service_waits_as_in_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: W = ρ·s / (2(1 − ρ))."""
    requests = [TraceRequest(t, 1, 1) for t in arrivals(8000, load / STEP_S, 7)]
    found = fmean(waits(simulate(SERVER, requests)))
    assert found == pytest.approx(load * STEP_S / (2 * (1 - load)), rel=0.1)


def test_exponential_service_waits_as_in_m_m_1() -> None:
    """W = ρ·s / (1 − ρ), service being the step times an exponentially long answer."""
    load, mean_tokens = 0.5, 60
    rng = random.Random(3)
    tokens = [max(1, math.ceil(rng.expovariate(1 / mean_tokens))) for _ in range(4000)]
    mean_s = fmean(tokens) * STEP_S
    times = arrivals(len(tokens), load / mean_s, 4)
    outcome = simulate(SERVER, [TraceRequest(t, 1, n) for t, n in zip(times, tokens, strict=True)])
    assert fmean(waits(outcome)) == pytest.approx(load * mean_s / (1 - load), rel=0.1)
    busy = outcome.pools["serve"].replicas[0].executor.busy_s / outcome.end_s
    assert busy == pytest.approx(load, rel=0.05)


def test_regular_arrivals_below_capacity_never_wait() -> None:
    requests = [TraceRequest(i * 0.0501, 4, 5) for i in range(500)]
    assert max(waits(simulate(SERVER, requests))) == pytest.approx(0.0, abs=1e-9)


def test_regular_arrivals_above_capacity_wait_ever_longer() -> None:
    requests = [TraceRequest(i * 0.04, 4, 5) for i in range(100)]
    assert waits(simulate(SERVER, requests)) == pytest.approx([i * 0.01 for i in range(100)], abs=1e-9)


@pytest.mark.parametrize(("replicas", "max_seqs"), [(1, 2), (1, 64), (3, 4)])
def test_little_s_law_holds_on_the_records(replicas: int, max_seqs: int) -> None:
    """Time in the system, summed over requests, is time in queues and time in steps, summed over engines."""
    outcome = simulate(setup(max_seqs=max_seqs), random_requests(random.Random(9), 300, 30.0), replicas=replicas)
    in_system = sum((served.finish_s or 0.0) - served.arrival_s for served in outcome.served)
    waiting = sum(served.queue_s for served in outcome.served)
    in_steps = sum(replica.usage.running_seconds for replica in outcome.pools["serve"].replicas.values())
    assert waiting + in_steps == pytest.approx(in_system, rel=1e-9)


def test_two_servers_wait_as_in_m_d_2() -> None:
    """M/D/2 is near half of M/M/2, W = s·ρ² / (1 − ρ²), times a little (Cosmetatos 1976: 1.014 at a load of 0.8)."""
    requests = [TraceRequest(t, 1, 1) for t in arrivals(6000, 1.6 / STEP_S, 11)]
    together = fmean(waits(simulate(SERVER, requests, replicas=2, router="least_loaded")))
    assert together == pytest.approx(1.014 / 2 * STEP_S * 0.64 / 0.36, rel=0.1)
