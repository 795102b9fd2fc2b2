"""``bench soak``: a short one with all its phases, and its judges: what leaks or lies must be found."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import call
from tokenmill.bench.soak import contract
from tokenmill.bench.soak.canaries import essence
from tokenmill.bench.soak.judge import KEPT_ACCOUNTS, MEMORY, MIB, Quiet, Trend, theil_sen, trends
from tokenmill.bench.soak.process import Process
from tokenmill.bench.soak.record import Record
from tokenmill.bench.soak.run import SoakOptions, soak
from tokenmill.bench.soak.wire import Answer

MODEL = "story-draft"
KIB_A_REQUEST = 1024 / MIB * 1000
"""SK-08's leak, in MiB a thousand requests."""


def run(**options: Any) -> dict[str, Any]:
    # The machine that runs the tests does other work as well: how quickly health answers is not judged here.
    return asyncio.run(soak(SoakOptions(model=MODEL, clients=4, health_limit_s=5.0, **options), print))


def broken(result: dict[str, Any]) -> set[str]:
    return {invariant["name"] for invariant in result["invariants"] if not invariant["ok"]}


def test_sk01_sk05_sk07_all_phases_in_short() -> None:
    """SK-01, SK-05, SK-07, FT-25 in seconds: load, floods, misdeeds, a kill, a rest; and everything holds."""
    found = run(minutes=0.15, isolate=True)
    assert found["passed"], (broken(found), found["breaches"])
    assert [kill["signal"] for kill in found["kills"]] == ["SIGKILL"]
    assert found["canaries"]["exact"] > 0
    assert found["bursts"]["after"]
    assert {"flood", "bad", "batch", "disconnect", "canary"} <= set(found["outcomes"])
    assert found["server_log"]["tracebacks"] == 0


def test_sk08_a_leaking_server_is_found_out() -> None:
    """SK-08: memory, descriptors and blocks that leak are told, each by its own invariant; nothing else is."""
    command = (sys.executable, "-m", "tests.bench.leaky_server")
    found = run(minutes=0.1, misdoers=1, settle_s=1.5, command=command)
    assert not found["passed"]
    assert broken(found) == {"blocks", "memory, server", "descriptors, server"}, found["breaches"]
    assert "kv_blocks_held" in found["breaches"][0]["what"]


# ---- memory ------------------------------------------------------------------------------------------


def moments(leak_mib_per_thousand: float, *, count: int = 60, requests: int = 400, seed: int = 0) -> list[Quiet]:
    """Of a server that fills its caches, wavers, and keeps so much of every request."""
    rng, found = random.Random(seed), []
    for number in range(count):
        sent = number * requests
        filling = min(sent, KEPT_ACCOUNTS) / KEPT_ACCOUNTS * 20
        wavering = rng.choice((0, 0, 0, rng.uniform(0, 12)))
        rss = 70 + filling + wavering + leak_mib_per_thousand * sent / 1000
        process = Process(100, "server", int(rss * MIB), 20 + rng.randrange(3), 9)
        found.append(Quiet(30.0 * number, sent, (process,), 460))
    return found


def memory_of(found: list[Quiet], role: str = "server") -> Trend:
    return next(trend for trend in trends(found) if trend.role == role and trend.bound is MEMORY)


@pytest.mark.parametrize("seed", range(20))
def test_sk08_a_kibibyte_a_request_is_told_from_none(seed: int) -> None:
    assert memory_of(moments(0.0, seed=seed)).ok
    assert not memory_of(moments(KIB_A_REQUEST, seed=seed)).ok


def test_sk08_the_recorded_soak_would_have_failed_with_such_a_leak(root: Path) -> None:
    """The moments of ``results/soak.json`` pass; with a kibibyte more for each request they do not."""
    recorded = json.loads((root / "results" / "soak.json").read_text())
    found = [
        Quiet(m["at_s"], m["requests"], tuple(Process(**each) for each in m["processes"]), m["series"])
        for m in recorded["moments"]
    ]
    assert all(trend.ok for trend in trends(found))
    for role in ("server", "engine"):
        leaking = [
            replace(moment, processes=tuple(_plus(each, 1024 * moment.requests, role) for each in moment.processes))
            for moment in found
        ]
        assert not memory_of(leaking, role).ok, role


def _plus(process: Process, count: int, role: str) -> Process:
    return replace(process, rss_bytes=process.rss_bytes + count) if process.role == role else process


def test_a_short_run_is_judged_by_growth_alone() -> None:
    """Over few requests a slope is noise; what a process gains in all must still be within its bound."""
    assert memory_of(moments(10.0, count=8, requests=100)).ok
    assert not memory_of(moments(200.0, count=8, requests=100)).ok


def test_each_engine_is_compared_with_itself() -> None:
    """A replaced process that begins larger is no growth."""
    found = [
        replace(moment, processes=(replace(moment.processes[0], pid=1 + number // 12, role="engine"),))
        for number, moment in enumerate(moments(0.0))
    ]
    steps = [
        replace(m, processes=(replace(m.processes[0], rss_bytes=m.processes[0].rss_bytes + 50 * MIB * (n // 12)),))
        for n, m in enumerate(found)
    ]
    assert memory_of(steps, "engine").growth <= MEMORY.growth


def test_the_slope_is_that_of_most() -> None:
    line = [(float(x), 3.0 * x + 1.0) for x in range(20)]
    for at in (2, 7, 11, 16):
        line[at] = (line[at][0], 1000.0)
    assert theil_sen([line]) == pytest.approx(3.0)
    assert theil_sen([[(1.0, 1.0)], []]) == 0.0


# ---- answers -----------------------------------------------------------------------------------------


def error(status: int, *, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    body = {"message": "No.", "type": "server_error", "param": None, "code": "server_overloaded"} | fields
    usual = {"x-request-id": "req_1", "content-type": "application/json", "retry-after": "3"}
    return Answer(status, usual | (headers or {}), json.dumps({"error": body}).encode(), 0.1)


@pytest.mark.parametrize(
    "answer",
    [
        error(503, message=""),
        error(503, code=3),
        error(503, more=1),
        error(503, headers={"retry-after": "121"}),
        error(429, headers={"retry-after": ""}),
        error(400, headers={"x-request-id": ""}),
        error(400, headers={"content-type": "text/html"}),
        Answer(500, {}, b"Internal Server Error", 0.1),
        Answer(500, {}, b"[]", 0.1),
    ],
)
def test_errors_of_another_shape_are_breaches(answer: Answer) -> None:
    record = Record()
    contract.refusal(record, "chat", answer, restarting=False)
    assert record.num_breaches["errors"] == 1


def test_refusals_are_in_order_and_restarts_excuse_only_restarts() -> None:
    for answer, restarting, breaches in (
        (error(503), False, 0),
        (error(429, code="rate_limit_exceeded"), False, 0),
        (error(503, code="engine_failed"), True, 0),
        (error(503, code="engine_failed"), False, 1),
        (error(500, code="server_error"), True, 1),
        (error(400, code="invalid_value"), False, 1),
    ):
        record = Record()
        contract.refusal(record, "chat", answer, restarting=restarting)
        assert record.num_breaches["errors"] == breaches, answer


def stream(*texts: str) -> Answer:
    events: list[Any] = [
        {"id": "1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts
    ]
    events.append({"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    return Answer(200, {"content-type": "text/event-stream"}, b"", 0.1, [*events, "[DONE]"])


def test_canaries_are_compared_by_all_that_must_stay() -> None:
    assert essence(stream("one ", "two")) == essence(stream("one", " t", "wo"))
    assert essence(stream("one ", "two")) != essence(stream("one ", "too"))
    whole = {"id": "a", "created": 1, "choices": [{"message": {"content": "x"}}]}
    answers = [Answer(200, {}, json.dumps(whole | more).encode(), 0.1) for more in ({}, {"id": "b", "created": 2})]
    assert essence(answers[0]) == essence(answers[1])
    other = Answer(200, {}, json.dumps(whole | {"choices": []}).encode(), 0.1)
    assert essence(other) != essence(answers[0])


def test_minutes_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "bench", "soak", "--minutes", "0")
    assert (done.code, done.err) == (1, "error: --minutes must be above 0, not 0\n")
