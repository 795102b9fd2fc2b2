"""What is asked: loads and limits, read from text and traces."""

from __future__ import annotations

import pytest

from tests.perf.plan.problems import DEVICE
from tokenmill.core.errors import ConfigError
from tokenmill.perf.plan import Limit, parse_price, parse_slo, parse_workload, workload_of
from tokenmill.perf.plan.slo import breaches, relaxed
from tokenmill.perf.simulate import TraceRequest, make_trace


def test_a_workload() -> None:
    found = parse_workload("input=500, output=200,rate=2.5,cached=0.4")
    assert (found.inputs.mean, found.outputs.statistic("p99"), found.rate, found.cached) == (500, 200, 2.5, 0.4)
    assert found.new_tokens == 300
    assert found.context == 600


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("input=500,output=200", "rate is missing"),
        ("", "input is missing"),
        ("input=-5,output=2,rate=1", "input must be a number from 1"),
        ("input=5,output=2,rate=nan", "rate must be a number"),
        ("input=5,output=2,rate=inf", "rate must be a number"),
        ("input=5,output=2,rate=1,rate=2", "rate is given twice"),
        ("inputs=5,output=2,rate=1", "did you mean 'input'"),
        ("input=5,output=2,rate=1,cached=1.5", "cached must be a number"),
        ("input", "is not KEY=VALUE"),
    ],
)
def test_a_bad_workload_names_the_key(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_workload(text)


def test_limits() -> None:
    found = parse_slo("ttft=0.5, itl_p95=50ms,e2e_mean=2 s,tpot=20000us")
    assert found == (
        Limit("ttft", "p99", 0.5),
        Limit("itl", "p95", 0.05),
        Limit("e2e", "mean", 2.0),
        Limit("tpot", "p99", 0.02),
    )
    assert parse_slo("") == ()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ttft=nan", "ttft must be a time above 0"),
        ("itl_p99=-1", "itl_p99 must be a time"),
        ("itl_p99=0", "itl_p99 must be a time"),
        ("e2e=inf", "e2e must be a time"),
        ("e2e=fast", "e2e must be a time"),
        ("ttft_p98=1", "did you mean 'ttft_p9"),
        ("itl=1,itl_p99=2", "itl_p99 is given twice"),
        ("latency=1", "unknown key 'latency'"),
        ("ttft", "is not KEY=SECONDS"),
    ],
)
def test_a_bad_limit_names_the_key(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_slo(text)


def test_limits_that_do_not_hold() -> None:
    limits = parse_slo("ttft=1,itl=0.1,e2e=5")
    missed = breaches(limits, lambda metric, statistic: {"ttft": 1.0, "itl": 0.2, "e2e": float("nan")}[metric])
    assert [limit.metric for limit, _ in missed] == ["itl", "e2e"]  # what is not a number holds nothing
    assert relaxed(limits, "itl_p99", 0.2)[1] == Limit("itl", "p99", 0.2)


@pytest.mark.parametrize("text", ["H100", "=2", "H100=-1", "H100=nan", "H100=free", "H1OO=2"])
def test_a_bad_price_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--price|no device"):
        parse_price(text)


def test_a_price_is_of_a_device_of_the_catalogue() -> None:
    assert parse_price("H100=2.5") == ("H100-SXM-80GB", 2.5)
    assert parse_price("Plain = 1", (DEVICE,)) == ("Plain", 1.0)


def test_the_load_of_a_trace() -> None:
    requests = [TraceRequest(float(i), 100 + 100 * (i % 2), 10 * (i + 1), (1, i + 5), 40) for i in range(11)]
    found = workload_of(make_trace("x", "test", requests))
    assert found.rate == 1.0
    assert found.inputs.mean == pytest.approx(sum(r.prompt_tokens for r in requests) / 11)
    assert found.inputs.statistic("p99") == 200
    assert found.outputs.statistic("p50") == 60
    assert found.burst == 0.0
    # The first piece of all but the first prompt was seen before.
    assert found.cached == pytest.approx(10 * 40 / sum(r.prompt_tokens for r in requests))
    assert workload_of(make_trace("x", "test", requests), 7.0).rate == 7.0


def test_a_trace_without_time_needs_a_rate() -> None:
    with pytest.raises(ConfigError, match="give a rate"):
        workload_of(make_trace("x", "test", [TraceRequest(0.0, 5, 5)] * 3))
