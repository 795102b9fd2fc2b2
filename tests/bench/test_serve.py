"""The load client against a server whose delays are known."""

from __future__ import annotations

import asyncio

import pytest

from tests.bench.fake_server import FIRST_TOKEN_S, NEXT_TOKEN_S, FakeServer
from tokenmill.bench.http import Client
from tokenmill.bench.load import PlannedRequest
from tokenmill.bench.serve import Outcome, Server, blocks_in_use, figures, inspect, parse_slo, run_load
from tokenmill.core.errors import SetupError
from tokenmill.perf.metrics import SLO

LATE_S = 0.3
"""What a busy machine may add to a delay of this kind."""


def run(fake: FakeServer, load: list[PlannedRequest]) -> list[Outcome]:
    async def measure() -> list[Outcome]:
        server = await inspect(Client(fake.url), None)
        return await run_load(server, load, 0, lambda answered, failed: None)

    with fake.running():
        return asyncio.run(measure())


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
    outcomes = run(FakeServer(fail=fail), [PlannedRequest(0.0, 8, 2)] * 4)
    found = figures(outcomes, SLO())
    assert (found["completed"], found["failed"]) == (2, 2)
    (only,) = found["errors"]
    assert found["errors"][only] == 2 and message in only
    assert found["goodput_per_s"] == pytest.approx(2 / found["duration_s"])


def test_figures_of_outcomes_that_were_made_up() -> None:
    def outcome(meant_s: float, first_s: float, end_s: float, tokens: int) -> Outcome:
        step = (end_s - first_s) / (tokens - 1)
        arrivals = [first_s + step * i for i in range(tokens)]
        return Outcome(PlannedRequest(meant_s, 10, tokens), meant_s + 0.01, arrivals, end_s, 10, tokens)

    failed = Outcome(PlannedRequest(3.0, 10, 10), 3.0, [], 4.0, error="HTTP 503")
    found = figures([outcome(0, 0.5, 1.5, 11), outcome(1, 2.0, 4.0, 11), failed], SLO(ttft_s=0.6))
    assert (found["duration_s"], found["output_tokens"], found["prompt_tokens"]) == (4.0, 22, 20)
    assert found["output_tokens_per_s"] == 5.5
    assert found["goodput_per_s"] == 0.25
    assert found["ttft_s"]["p50"] == pytest.approx(0.75)
    assert found["tpot_s"]["mean"] == pytest.approx(0.15)
    assert found["itl_s"]["max"] == pytest.approx(0.2)
    assert found["e2e_s"]["max"] == pytest.approx(3.0)
    assert found["errors"] == {"HTTP 503": 1}


def test_answers_shorter_than_wanted_are_told() -> None:
    short = Outcome(PlannedRequest(0.0, 8, 5), 0.0, [0.1], 0.2, 8, 3)
    assert figures([short], SLO())["short_answers"] == 1


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
        (outcome,) = asyncio.run(run_load(server, [PlannedRequest(0.0, 4, 5)], 0, lambda answered, failed: None))
    assert outcome.error is not None and "within 0.02 s" in outcome.error


def test_slo_limits() -> None:
    assert parse_slo("ttft=0.5, itl=0.1") == SLO(ttft_s=0.5, itl_s=0.1)
    assert parse_slo(None) == SLO()
    with pytest.raises(SetupError, match=r"ttft=0\.5"):
        parse_slo("first=1")
