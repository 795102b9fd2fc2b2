"""The load client against a server whose delays are known."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.fake_server import FIRST_TOKEN_S, NEXT_TOKEN_S, FakeServer
from tokenmill.bench.http import Client
from tokenmill.bench.load import PlannedRequest
from tokenmill.bench.null_server import calibrate
from tokenmill.bench.scrape import parse_metrics
from tokenmill.bench.serve import Outcome, Run, Server, blocks_in_use, inspect, parse_slo, run_load
from tokenmill.bench.serve_figures import Warmup, figures, parse_warmup
from tokenmill.bench.serve_sweep import ServeOptions, measure
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.perf.metrics import SLO
from tokenmill.perf.result import LATENCIES, goodput_knee, missing_in

LATE_S = 0.3
"""What a busy machine may add to a delay of this kind."""
SIX = ServeOptions(num_requests=6, prompt_tokens="8", output_tokens="3")


def carry_out(fake: FakeServer, load: list[PlannedRequest], **how: Any) -> Run:
    async def go() -> Run:
        server = await inspect(Client(fake.url), None, how.pop("endpoint", "completions"))
        return await run_load(server, load, "0", lambda answered, failed: None, **how)

    with fake.running():
        return asyncio.run(go())


def run(fake: FakeServer, load: list[PlannedRequest]) -> list[Outcome]:
    return carry_out(fake, load).outcomes


def result(fake: FakeServer, options: ServeOptions = SIX, **changes: Any) -> dict[str, Any]:
    """What the command keeps, through JSON, which refuses what is not a number."""
    with fake.running():
        if changes.get("metrics"):
            changes["metrics"] = fake.url + changes["metrics"]
        found = asyncio.run(measure(Client(fake.url), replace(options, **changes)))
    again: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return again


def made_up(meant_s: float, first_s: float, end_s: float, tokens: int) -> Outcome:
    step = (end_s - first_s) / (tokens - 1)
    arrivals = [first_s + step * i for i in range(tokens)]
    return Outcome(PlannedRequest(meant_s, 10, tokens), meant_s + 0.01, arrivals, end_s, 10, tokens)


def test_the_server_is_asked_what_it_serves_and_how_long_a_word_is() -> None:
    with FakeServer().running() as fake:
        server = asyncio.run(inspect(Client(fake.url), None))
    assert (server.model, server.max_context, server.tokens_per_word) == ("fake", 512, 2.0)


def test_latencies_are_those_of_the_server() -> None:
    (outcome,) = run(FakeServer(), [PlannedRequest(0.0, 20, 5)])
    timeline = outcome.timeline()
    assert outcome.error is None
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (20, 5, 3)
    assert FIRST_TOKEN_S <= timeline.ttft_s <= FIRST_TOKEN_S + LATE_S
    assert len(timeline.itl_s) == 4
    assert NEXT_TOKEN_S * 0.5 <= timeline.tpot_s <= NEXT_TOKEN_S + LATE_S
    assert timeline.e2e_s >= FIRST_TOKEN_S + 4 * NEXT_TOKEN_S


def test_requests_go_out_at_their_moments_and_lengths_are_forced() -> None:
    fake = FakeServer()
    outcomes = run(fake, [PlannedRequest(0.1 * i, 8, 3 + i) for i in range(4)])
    for i, outcome in enumerate(outcomes):
        assert 0.1 * i <= outcome.sent_s <= 0.1 * i + LATE_S
        assert outcome.output_tokens == 3 + i
    assert all(body["ignore_eos"] is True for body in fake.bodies)
    assert len({str(body["prompt"]) for body in fake.bodies}) == 4


def test_waiting_for_a_slow_server_counts() -> None:
    """Coordinated omission: ten requests at once, served one at a time; the last waited for nine others."""
    outcomes = run(FakeServer(one_at_a_time=True), [PlannedRequest(0.0, 8, 2)] * 10)
    one_s = FIRST_TOKEN_S + NEXT_TOKEN_S
    waits = sorted(outcome.timeline().ttft_s for outcome in outcomes)
    assert waits[-1] >= 9 * one_s + FIRST_TOKEN_S
    assert waits[4] >= 4 * one_s


@pytest.mark.parametrize(
    ("fail", "message"), [("status", "503: too busy"), ("cut", "the connection ended"), ("event", "the engine failed")]
)
def test_failures_are_counted_and_have_no_latency(fail: str, message: str) -> None:
    done = carry_out(FakeServer(fail=fail), [PlannedRequest(0.0, 8, 2)] * 4)
    found = figures(done, SLO())
    assert (found["requests"]["completed"], found["requests"]["failed"]) == (2, 2)
    (only,) = found["errors"]
    assert found["errors"][only] == 2 and message in only
    assert len(found["samples"]["ttft_s"]) == 2
    assert found["goodput"]["share"] == 0.5
    assert found["goodput"]["requests_per_s"] == pytest.approx(2 / found["window"]["duration_s"])


def test_figures_of_outcomes_that_were_made_up() -> None:
    failed = Outcome(PlannedRequest(3.0, 10, 10), 3.0, [], 4.0, error="HTTP 503")
    outcomes = [made_up(0, 0.5, 1.5, 11), made_up(1, 2.0, 4.0, 11), failed]
    found = figures(Run(outcomes, None), SLO(ttft_s=0.6))
    assert not missing_in(found)
    assert (found["window"]["duration_s"], found["tokens"]["output"], found["tokens"]["input"]) == (4.0, 22, 20)
    assert found["throughput"]["output_tokens_per_s"] == 5.5
    assert found["goodput"] == {"requests_per_s": 0.25, "share": pytest.approx(1 / 3)}
    latency = found["latency"]
    assert latency["ttft_s"]["p50"] == pytest.approx(0.75)
    assert latency["ttft_after_send_s"]["p50"] == pytest.approx(0.74)
    assert latency["tpot_s"]["mean"] == pytest.approx(0.15)
    assert latency["itl_s"]["max"] == pytest.approx(0.2)
    assert latency["e2e_s"]["max"] == pytest.approx(3.0)
    assert latency["tokens_per_piece"]["mean"] == 1.0
    assert found["errors"] == {"HTTP 503": 1}


def test_answers_that_end_early_are_counted_apart_and_have_no_latency() -> None:
    done = carry_out(FakeServer(natural_length=2), [PlannedRequest(0.0, 8, 2), PlannedRequest(0.0, 8, 5)])
    found = figures(done, SLO())
    assert (found["requests"]["completed"], found["requests"]["truncated"]) == (1, 1)
    assert found["goodput"]["share"] == 0.5 and len(found["samples"]["ttft_s"]) == 1
    free = carry_out(FakeServer(natural_length=2), [PlannedRequest(0.0, 8, 5, may_end_early=True)])
    assert figures(free, SLO())["requests"]["completed"] == 1


def test_answers_that_the_client_gives_up_are_counted_apart() -> None:
    fake = FakeServer()
    done = carry_out(fake, [PlannedRequest(0.0, 8, 40, give_up_after=2), PlannedRequest(0.0, 8, 2)])
    found = figures(done, SLO())
    assert (found["requests"]["cancelled"], found["requests"]["completed"]) == (1, 1)
    assert done.outcomes[0].end_s < 40 * NEXT_TOKEN_S
    assert found["goodput"]["share"] == 1.0 and len(found["samples"]["ttft_s"]) == 1


def test_cached_tokens_are_counted() -> None:
    found = result(FakeServer())
    assert found["tokens"]["cached"] == 6 * 3 and found["samples"]["cached_tokens"] == [3] * 6


def test_a_server_that_stalls_shows_it_in_every_request_that_came_meanwhile() -> None:
    """Coordinated omission: five requests in the second for which the server does nothing."""
    found = figures(carry_out(FakeServer(stall_s=1.0), [PlannedRequest(0.2 * i, 8, 2) for i in range(5)]), SLO())
    for sent_s, ttft_s in zip(found["samples"]["send_s"], found["samples"]["ttft_s"], strict=True):
        assert ttft_s == pytest.approx(1.0 - sent_s, abs=LATE_S)
    assert found["latency"]["ttft_s"]["max"] >= 1.0


def test_a_late_client_is_in_the_scheduled_latency_and_in_the_audit() -> None:
    late = made_up(1.0, 2.0, 3.0, 5)
    late.sent_s = 1.8
    found = figures(Run([late], None), SLO())
    assert found["latency"]["ttft_s"]["p50"] == pytest.approx(1.0)
    assert found["latency"]["ttft_after_send_s"]["p50"] == pytest.approx(0.2)
    assert found["client"]["send_lag_s"]["max"] == pytest.approx(0.8)


def test_warm_up_is_left_out() -> None:
    outcomes = [made_up(0, 5, 6, 5), made_up(1, 1.1, 1.5, 5), made_up(2, 2.1, 2.5, 5)]
    found = figures(Run(outcomes, None), SLO(), Warmup(requests=1))
    assert found["requests"] == {
        "sent": 2, "completed": 2, "failed": 0, "cancelled": 0, "truncated": 0, "warmup": 1
    }  # fmt: skip
    assert found["latency"]["ttft_s"]["max"] == pytest.approx(0.1)
    assert (found["window"]["begin_s"], found["window"]["end_s"]) == (1.0, 2.5)
    assert figures(Run(outcomes, None), SLO(), parse_warmup("1.5s"))["requests"]["warmup"] == 2
    with pytest.raises(ConfigError, match="takes all 3"):
        figures(Run(outcomes, None), SLO(), Warmup(requests=3))
    with pytest.raises(ConfigError, match="such as 5s"):
        parse_warmup("soon")


def test_the_steady_window_is_from_full_concurrency_to_the_last_send() -> None:
    """Two clients from 1 s on, the last send at 4.01 s; an answer's tokens count where they arrive."""
    outcomes = [made_up(0, 1, 4, 4), made_up(1, 2, 3, 2), made_up(3, 4, 5, 2), made_up(4, 6, 7, 2)]
    found = figures(Run(outcomes, 2), SLO())["steady"]
    assert found["window"]["begin_s"] == pytest.approx(1.01)
    assert found["window"]["end_s"] == pytest.approx(4.01)
    assert found["requests"]["sent"] == 3
    assert found["throughput"]["output_tokens_per_s"] == pytest.approx((3 + 2 + 1) / 3)
    assert found["throughput"]["requests_per_s"] == pytest.approx(2 / 3)
    assert figures(Run([made_up(0, 1, 2, 4)] * 3, None), SLO())["steady"] is None


def test_a_closed_loop_has_so_many_under_way() -> None:
    fake = FakeServer()
    done = carry_out(fake, [PlannedRequest(0.0, 8, 2)] * 6, concurrency=2)
    moments = sorted([(o.sent_s, 1) for o in done.outcomes] + [(o.end_s, -1) for o in done.outcomes])
    under_way = [sum(change for _, change in moments[: i + 1]) for i in range(len(moments))]
    assert max(under_way) == 2
    assert all(o.planned.send_s == pytest.approx(o.sent_s, abs=0.05) for o in done.outcomes)


@pytest.mark.parametrize("style", ["plain", "vllm", "llama.cpp"])
@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_servers_of_other_makes(style: str, endpoint: str) -> None:
    found = result(FakeServer(style=style), endpoint=endpoint)
    assert found["requests"]["completed"] == 6 and found["tokens"]["output"] == 18
    assert found["latency"]["tokens_per_piece"]["max"] == 1.0, "a first piece with a role alone is no token"
    assert found["counted_by"] == {"length" if style == "llama.cpp" else "usage": 6}


def test_without_usage_an_early_end_is_counted_by_pieces() -> None:
    fake = FakeServer(style="llama.cpp", natural_length=2)
    (outcome,) = run(fake, [PlannedRequest(0.0, 8, 9)])
    assert (outcome.output_tokens, outcome.counted_by, outcome.status) == (2, "pieces", "truncated")


def test_a_sweep_has_a_point_per_rate_and_a_knee() -> None:
    fake = FakeServer(one_at_a_time=True)  # 0.09 s a request: 11 a second
    found = result(fake, rates=(5.0, 100.0), arrivals="uniform", slo="ttft=0.25", num_requests=12)
    slow, quick = found["points"]
    assert [slow["rate_per_s"], quick["rate_per_s"]] == [5.0, 100.0]
    assert not missing_in(slow) and set(LATENCIES) <= set(slow["latency"])
    assert slow["goodput"]["share"] > quick["goodput"]["share"]
    assert goodput_knee(found["points"]) == 5.0
    prompts = {str(body["prompt"]) for body in fake.bodies}
    assert len(prompts) == 24, "a prompt of an earlier point would be found in the server's cache"


def test_the_servers_metrics_are_read_beside() -> None:
    fake = FakeServer(blocks_in_use=[0.25, 0.5, 0.0])
    found = result(fake, metrics="/metrics")
    assert found["metrics"]["before"] == {"vllm:kv_cache_usage_perc": 0.25}
    assert len(found["series"]["t_s"]) == found["metrics"]["samples"] >= 2
    absent = result(FakeServer(style="llama.cpp"), metrics="/metrics")
    assert absent["metrics"]["after"] == {"llamacpp:requests_processing": 2.0}


def test_metrics_that_cannot_be_read_cost_only_themselves() -> None:
    with FakeServer().running() as fake:
        options = replace(SIX, metrics="http://127.0.0.1:9/metrics")
        found = asyncio.run(measure(Client(fake.url), options))
    assert found["requests"]["completed"] == 6
    assert found["metrics"]["samples"] == 0 and found["metrics"]["failed"] >= 2 and found["metrics"]["error"]


def test_metrics_are_added_up_over_labels() -> None:
    text = 'x_num_requests_running{a="1"} 2\nx_num_requests_running{a="}"} 3\nx_tokens_total_created 9\nother 1\n'
    assert parse_metrics(text) == {"x_num_requests_running": 5.0}


def test_a_trace_brings_its_moments_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = [f"2024-01-01 00:00:0{i},{8 + i},3\n" for i in range(4)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows))
    fake = FakeServer()
    found = result(fake, trace=path, trace_speed=10.0)
    assert found["rate_per_s"] == pytest.approx(10.0) and found["load"]["lengths"] == "trace.csv"
    assert found["samples"]["send_s"] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [body["max_tokens"] for body in fake.bodies] == [3] * 4
    with pytest.raises(ConfigError, match="--trace brings its own moments"):
        result(FakeServer(), trace=path, rates=(1.0,))


def test_calibration_is_far_below_the_latency_of_a_server() -> None:
    server = Server(Client("http://127.0.0.1:9"), "fake", None, 1.0, "chat")
    audit = asyncio.run(calibrate(server, [PlannedRequest(0.01 * i, 8, 20) for i in range(10)], None))
    assert audit["requests"] == 10
    assert 0 < audit["per_piece_s"]["p50"] < audit["ttft_s"]["p50"] < FIRST_TOKEN_S


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": (1.0,), "concurrencies": (2,)}, "--rate is open loop"),
        ({"rates": (0.0,)}, "more than 0"),
        ({"warmup": "x"}, "--warmup"),
        ({"metrics": "localhost:8000"}, "--metrics"),
        ({"arrivals": "normal"}, "arrivals 'normal' are unknown"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asyncio.run(measure(Client("http://127.0.0.1:9"), replace(SIX, **changes)))


def test_blocks_are_given_time_to_become_free() -> None:
    with FakeServer(blocks_in_use=[0.5, 0.25, 0.0]).running() as fake:
        assert asyncio.run(blocks_in_use(Client(fake.url))) == 0.0


def test_an_unreachable_server_is_named() -> None:
    with pytest.raises(SetupError, match=r"no OpenAI-compatible server at http://127\.0\.0\.1:9"):
        asyncio.run(inspect(Client("http://127.0.0.1:9"), None))


def test_a_model_that_is_not_served_is_refused_with_those_that_are() -> None:
    with FakeServer().running() as fake, pytest.raises(SetupError, match="serves fake, not other"):
        asyncio.run(inspect(Client(fake.url), "other"))


def test_a_server_that_never_answers_times_out() -> None:
    with FakeServer().running() as fake:
        server = Server(Client(fake.url, timeout_s=0.02), "fake", None, 1.0)
        done = asyncio.run(run_load(server, [PlannedRequest(0.0, 4, 5)], "0", lambda answered, failed: None))
    (outcome,) = done.outcomes
    assert outcome.error is not None and "within 0.02 s" in outcome.error


def test_slo_limits() -> None:
    assert parse_slo("ttft=0.5, itl=0.1") == SLO(ttft_s=0.5, itl_s=0.1)
    assert parse_slo(None) == SLO()
    with pytest.raises(SetupError, match=r"ttft=0\.5"):
        parse_slo("first=1")
