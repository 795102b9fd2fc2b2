"""Whom the server lets in, and what it tells the others: OV-02 … OV-09, shares of the queue, background work."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.service import TimedExecutor
from tests.server.support import Running, error_of, events, running_server, wait_until
from tests.server.test_keys import bearer, give_key
from tokenmill.core.errors import Unavailable
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.server.settings import ServerSettings

COMPLETIONS = "/v1/completions"


class GatedExecutor(TimedExecutor):
    """Stands still while ``gate`` is closed: the engine's thread waits in the middle of a step."""

    gate: threading.Event

    def _run(self, plan: StepPlan) -> StepResult:
        self.gate.wait(30)
        return super()._run(plan)


def gated(settings: ServerSettings, **options: Any) -> Any:
    GatedExecutor.gate = threading.Event()
    GatedExecutor.gate.set()
    return running_server(settings, executor_class=GatedExecutor, **options)


class Crowd:
    """Many clients at once."""

    def __init__(self, server: Running, threads: int = 64) -> None:
        self.server = server
        self.pool = ThreadPoolExecutor(threads)

    def send(self, count: int, key: str | None = None, **wishes: Any) -> list[Future[httpx.Response]]:
        headers = bearer(key) if key else {}
        bodies = [self.server.completion(**{"max_tokens": 4, "ignore_eos": True, **wishes}) for _ in range(count)]
        return [self.pool.submit(self.server.post, COMPLETIONS, body, headers=headers) for body in bodies]

    def close(self) -> None:
        self.pool.shutdown()


def statuses(futures: list[Future[httpx.Response]]) -> list[int]:
    return [future.result(30).status_code for future in futures]


def take_both_places(crowd: Crowd, key: str | None = None) -> list[Future[httpx.Response]]:
    """Two requests run, and then the engine stands still."""
    running = crowd.send(2, key, max_tokens=300)
    wait_until(lambda: crowd.server.app.context.admission._running == 2, 5)
    GatedExecutor.gate.clear()
    return running


def next_one(crowd: Crowd, key: str | None = None, **wishes: Any) -> Future[httpx.Response]:
    """One more request, once it has been let in or refused."""
    admission = crowd.server.app.context.admission
    before = admission.waiting.under_way
    (future,) = crowd.send(1, key, **wishes)
    wait_until(lambda: future.done() or admission.waiting.under_way > before, 5)
    return future


@pytest.fixture
def paused() -> Iterator[tuple[Running, Crowd]]:
    """An engine of two places, both taken, that stands still; five may wait."""
    with gated(ServerSettings(port=0, max_waiting_requests=5), max_seqs=2, step_s=0.002) as server:
        crowd = Crowd(server)
        admission = server.app.context.admission
        running = take_both_places(crowd)
        yield server, crowd
        GatedExecutor.gate.set()
        assert statuses(running) == [200, 200]
        crowd.close()
        server.wait_idle(5)
        assert not admission._entries
        assert (admission.waiting.choices, admission.waiting.tokens, admission._running) == (0, 0, 0)


def until_waiting(server: Running, count: int) -> None:
    admission = server.app.context.admission
    wait_until(lambda: admission.waiting.under_way == count, 5)


def test_ov02_the_bound_is_exact(paused: tuple[Running, Crowd]) -> None:
    """OV-02: of five places and nine requests exactly four are refused, and none of the five is lost."""
    _, crowd = paused
    futures = crowd.send(9)
    wait_until(lambda: sum(future.done() for future in futures) == 4, 10)
    time.sleep(0.1)
    refused = [future.result() for future in futures if future.done()]
    assert [response.status_code for response in refused] == [503] * 4
    assert {error_of(response)["code"] for response in refused} == {"server_overloaded"}
    assert all(1 <= int(response.headers["retry-after"]) <= 120 for response in refused)
    GatedExecutor.gate.set()
    assert sorted(statuses(futures)) == [200] * 5 + [503] * 4


def test_ov02_choices_count(paused: tuple[Running, Crowd]) -> None:
    server, crowd = paused
    accepted = crowd.send(1, n=4)
    until_waiting(server, 3)
    assert statuses(crowd.send(1, n=2)) == [503]
    accepted += crowd.send(1)
    until_waiting(server, 4)
    assert statuses(crowd.send(1)) == [503]
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200, 200]


def test_who_leaves_the_queue_makes_room(paused: tuple[Running, Crowd]) -> None:
    """As soon as the engine has heard of it: until then it holds memory."""
    server, crowd = paused
    accepted = crowd.send(4)
    until_waiting(server, 6)
    with pytest.raises(httpx.ReadTimeout):
        server.post(COMPLETIONS, server.completion(), timeout=0.3)
    assert statuses(crowd.send(1)) == [503]
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200] * 4


def test_a_burst_that_the_batch_holds_is_no_queue() -> None:
    with gated(ServerSettings(port=0, max_waiting_requests=1), max_seqs=32) as server:
        crowd = Crowd(server)
        GatedExecutor.gate.clear()
        futures = crowd.send(32)
        until_waiting(server, 32)
        GatedExecutor.gate.set()
        assert statuses(futures) == [200] * 32
        crowd.close()


def test_ov03_the_bound_on_tokens() -> None:
    """OV-03: prompts beyond the bound are refused; the time that they are told is that of the queue, about."""
    settings = ServerSettings(port=0, max_waiting_tokens=3000)
    with gated(settings, max_seqs=4, max_step_tokens=64, step_s=0.01) as server:
        crowd = Crowd(server)
        statuses(crowd.send(24, prompt=[5] * 200))  # so that it knows its pace
        server.wait_idle(10)
        GatedExecutor.gate.clear()
        running = crowd.send(4, prompt=[5] * 200)
        until_waiting(server, 4)
        accepted: list[Future[httpx.Response]] = []
        admission = server.app.context.admission
        while not (future := next_one(crowd, prompt=[len(accepted) + 6] * 200)).done():
            accepted.append(future)
        response = future.result()
        assert (response.status_code, error_of(response)["code"]) == (503, "server_overloaded")
        assert 10 <= len(accepted) <= 15
        told_s = admission.wait_s()
        assert int(response.headers["retry-after"]) >= 1
        started_s = time.monotonic()
        GatedExecutor.gate.set()
        assert statuses(accepted + running) == [200] * (len(accepted) + 4)
        took_s = time.monotonic() - started_s
        assert 0.33 * took_s < told_s < 2 * took_s
        crowd.close()


def test_ov04_the_queue_deadline() -> None:
    """OV-04: it ends with 503 in time though the engine stands still, has run no step and holds nothing."""
    settings = ServerSettings(port=0, queue_timeout_s=0.5)
    with gated(settings, max_seqs=1) as server:
        crowd = Crowd(server)
        assert statuses(crowd.send(1)) == [200]
        GatedExecutor.gate.clear()
        running = crowd.send(1)
        wait_until(lambda: server.stats()["running"] == 1, 5)
        started_s = time.monotonic()
        response = server.post(COMPLETIONS, server.completion())
        waited_s = time.monotonic() - started_s
        assert (response.status_code, error_of(response)["code"]) == (503, "queue_timeout")
        assert 0.45 < waited_s < 1.5
        stream = server.post(COMPLETIONS, server.completion(stream=True))
        assert (stream.status_code, error_of(stream)["code"]) == (503, "queue_timeout")
        blocks_held = server.stats()["blocks_held"]
        GatedExecutor.gate.set()
        statuses(running)
        server.wait_idle(5)
        account = server.get(f"/v1/requests/{response.headers['x-request-id']}").json()
        assert (account["state"], account["generated_tokens"], account["account"]["num_chunks"]) == ("aborted", 0, 0)
        assert blocks_held <= 2, "the running one's"
        crowd.close()


def test_ov05_the_request_s_deadline() -> None:
    """OV-05: 504 without a stream, an error event in one; its blocks are free at once."""
    with running_server(ServerSettings(port=0), step_s=0.02) as server:
        body = server.completion(max_tokens=400, ignore_eos=True, timeout_s=0.5)
        started_s = time.monotonic()
        response = server.post(COMPLETIONS, body)
        waited_s = time.monotonic() - started_s
        assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
        assert 0.45 < waited_s < 1.5
        assert server.stats()["blocks_held"] == 0
        text = ""
        with (
            server.http.stream("POST", server.url + COMPLETIONS, json={**body, "stream": True}) as stream,
            contextlib.suppress(httpx.RemoteProtocolError),  # cut after its error: nobody takes it for whole
        ):
            for part in stream.iter_text():
                text += part
        assert events(text)[-1]["error"]["code"] == "deadline_exceeded"
        server.wait_idle(1)


def test_a_deadline_that_the_queue_cannot_meet_is_told_at_once() -> None:
    with gated(ServerSettings(port=0), max_seqs=1, step_s=0.01) as server:
        crowd = Crowd(server)
        statuses(crowd.send(12, max_tokens=8))
        GatedExecutor.gate.clear()
        waiting = crowd.send(12, max_tokens=8)
        until_waiting(server, 12)
        response = server.post(COMPLETIONS, server.completion(timeout_s=0.2))  # 504 if it had been let in
        assert (response.status_code, error_of(response)["code"]) == (503, "server_overloaded")
        assert "timeout_s" in error_of(response)["message"]
        GatedExecutor.gate.set()
        assert statuses(waiting) == [200] * 12
        crowd.close()


def test_nobody_is_taken_who_would_wait_too_long() -> None:
    with gated(ServerSettings(port=0, max_wait_s=0.5), max_seqs=1, step_s=0.01) as server:
        crowd = Crowd(server)
        statuses([future for _ in range(6) for future in crowd.send(1, max_tokens=20)])
        GatedExecutor.gate.clear()
        futures = crowd.send(40, max_tokens=20)
        wait_until(lambda: sum(future.done() for future in futures) >= 30, 10)
        GatedExecutor.gate.set()
        codes = statuses(futures)
        assert 2 <= codes.count(200) <= 10
        assert codes.count(200) + codes.count(503) == 40
        crowd.close()


def test_ov07_a_request_that_can_never_fit() -> None:
    """OV-07: refused when it comes, by the context or by the pool where that is the smaller, and nothing hangs."""
    with running_server(ServerSettings(port=0), num_blocks=8, max_context=512) as server:
        over = server.post(COMPLETIONS, server.completion(max_tokens=600))
        assert (over.status_code, error_of(over)["code"]) == (400, "context_length_exceeded")
        pool = server.post(COMPLETIONS, server.completion(max_tokens=300))
        assert (pool.status_code, error_of(pool)["code"]) == (400, "kv_capacity_exceeded")
        assert server.post(COMPLETIONS, server.completion(max_tokens=50)).status_code == 200


def test_ov08_refused_clients_do_not_all_come_back_at_once(paused: tuple[Running, Crowd]) -> None:
    """OV-08, the server's half: the times that they are told are spread."""
    server, crowd = paused
    accepted = crowd.send(5)
    until_waiting(server, 7)
    admission = server.app.context.admission
    told = []
    for _ in range(200):
        with pytest.raises(Unavailable) as caught:
            admission.check(ticket())
        told.append(caught.value.retry_after_s or 0.0)
    assert min(told) >= 1.0
    assert max(told) <= 120.0
    assert max(told) / min(told) > 1.15
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200] * 5


def ticket(**more: Any) -> Any:
    from tokenmill.server.context import Ticket

    return Ticket("req_x", time.monotonic(), **more)


def test_ov08_a_storm_of_retries_passes() -> None:
    """A pulse of forty clients that obey what they are told: all are served, with few attempts each."""
    settings = ServerSettings(port=0, max_waiting_requests=8, max_wait_s=2.0)
    with running_server(settings, max_seqs=4, step_s=0.004) as server:
        attempts = []

        def client(number: int) -> int:
            for attempt in range(1, 9):
                response = server.post(COMPLETIONS, server.completion(max_tokens=10, ignore_eos=True))
                if response.status_code == 200:
                    attempts.append(attempt)
                    return 200
                assert response.status_code == 503
                time.sleep(int(response.headers["retry-after"]))
            return 503

        with ThreadPoolExecutor(40) as pool:
            assert set(pool.map(client, range(40))) == {200}
        assert sum(attempts) <= 3 * 40
        server.wait_idle(5)


def test_ov09_health_answers_while_everybody_is_refused() -> None:
    """OV-09: many more clients than places, all trying again at once; and metrics do not grow with their names."""
    settings = ServerSettings(port=0, max_waiting_requests=2)
    with running_server(settings, max_seqs=2, step_s=0.01) as server:
        stop = threading.Event()
        refused = []

        def client(number: int) -> None:
            with httpx.Client(timeout=30) as http:
                while not stop.is_set():
                    body = server.completion(tenant=f"t{number}", max_tokens=40, ignore_eos=True)
                    refused.append(http.post(server.url + COMPLETIONS, json=body).status_code)
                    time.sleep(0.005)  # they share an interpreter with the server

        with ThreadPoolExecutor(16) as pool:
            for number in range(16):
                pool.submit(client, number)
            times = []
            until_s = time.monotonic() + 2.0
            while time.monotonic() < until_s:
                started_s = time.monotonic()
                assert server.get("/health/ready").status_code == 200
                times.append(time.monotonic() - started_s)
                time.sleep(0.01)
            stop.set()
        assert {200, 503} == set(refused)
        assert refused.count(503) > refused.count(200)
        assert sorted(times)[len(times) // 2] < 0.5, "here clients and server share two busy cores"
        assert "t13" not in server.get("/metrics").text
        server.wait_idle(5)


# ---- shares ----------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Running, Crowd, dict[str, str]]]:
    """A queue of eight places before an engine of two that stands still; ``big`` has three times ``small``'s weight."""
    path = tmp_path / "keys.json"
    keys = {name: give_key(path, name, weight=weight) for name, weight in (("big", 3.0), ("small", 1.0), ("new", 1.0))}
    settings = ServerSettings(port=0, keys=path, max_waiting_requests=8)
    with gated(settings, max_seqs=2, policy="fair", step_s=0.002) as server:
        crowd = Crowd(server)
        running = take_both_places(crowd, keys["small"])
        yield server, crowd, keys
        GatedExecutor.gate.set()
        statuses(running)
        crowd.close()
        server.wait_idle(5)


def test_a_flood_is_refused_with_429_and_others_are_let_in(shared: tuple[Running, Crowd, dict[str, str]]) -> None:
    """Alone, a tenant gets all but what is left for whoever is not here; others then get theirs."""
    server, crowd, keys = shared
    flood = crowd.send(12, keys["small"])
    wait_until(lambda: sum(future.done() for future in flood) >= 8, 10)
    refused = [future.result() for future in flood if future.done()]
    assert {response.status_code for response in refused} == {429}
    assert {error_of(response)["code"] for response in refused} == {"rate_limit_exceeded"}
    assert all(1 <= int(response.headers["retry-after"]) <= 120 for response in refused)
    others = crowd.send(1, keys["new"]) + crowd.send(3, keys["big"])
    wait_until(lambda: server.app.context.admission.waiting.under_way >= 9, 5)
    GatedExecutor.gate.set()
    assert statuses(others) == [200] * 4
    assert statuses(flood).count(200) == 4


def test_shares_follow_weights(shared: tuple[Running, Crowd, dict[str, str]]) -> None:
    _, crowd, keys = shared
    accepted = [next_one(crowd, keys["small"]), next_one(crowd, keys["big"])]
    counts = {"small": 1, "big": 1}
    for name in counts:
        while not (future := next_one(crowd, keys[name])).done():
            accepted.append(future)
            counts[name] += 1
    assert counts == {"small": 1, "big": 4}
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200] * 5


def test_background_is_shed_first(paused: tuple[Running, Crowd]) -> None:
    """It has a queue of half the size for itself, and none while half of the others' is full."""
    server, crowd = paused
    admission = server.app.context.admission
    admission.check(ticket(background=True))
    accepted = crowd.send(3)
    until_waiting(server, 5)
    with pytest.raises(Unavailable) as caught:
        admission.check(ticket(background=True))
    assert caught.value.code == "server_overloaded"
    admission.check(ticket())
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200] * 3


def test_what_the_engine_never_tells_of_is_forgotten(paused: tuple[Running, Crowd]) -> None:
    """An engine that died says nothing of those who had left: they must not fill the queue for ever."""
    server, crowd = paused
    accepted = crowd.send(4)
    until_waiting(server, 6)
    with pytest.raises(httpx.ReadTimeout):
        server.post(COMPLETIONS, server.completion(), timeout=0.3)
    admission = server.app.context.admission
    wait_until(lambda: any(entry.slot is None for entry in admission._entries.values()), 5)
    with pytest.raises(Unavailable):
        admission.check(ticket())
    for entry in admission._entries.values():
        entry.left_s -= 1000.0
    with pytest.raises(Unavailable):
        admission.check(ticket())  # this refusal looked, and found it
    admission.check(ticket())
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200] * 4


def test_a_refusal_on_the_short_way_says_what_one_on_the_long_way_says(paused: tuple[Running, Crowd]) -> None:
    """Whole requests in one piece are refused before the application sees them; the rest as before."""
    server, crowd = paused
    accepted = crowd.send(5)
    until_waiting(server, 7)
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    body = json.dumps(server.completion()).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
    head += b"Content-Type: application/json\r\n"
    assert server.post(COMPLETIONS, server.completion()).status_code == 503
    before = server.metric("tokenmill_request_rejection_total")
    answers = []
    with socket.create_connection(address) as line:
        for pieces in ((head + b"\r\n" + body,), (head + b"\r\n", body), (head + b"X-A: 1\r\nX-A: 2\r\n\r\n" + body,)):
            for piece in pieces:
                line.sendall(piece)
                time.sleep(0.05)
            answers.append(read_answer(line))
    short, *long = answers
    assert short[0] == 503 and {status for status, _, _ in long} == {503}
    for _, headers, content in long:
        assert headers.keys() == short[1].keys()
        assert json.loads(content)["error"].keys() == json.loads(short[2])["error"].keys()
        assert json.loads(content)["error"]["code"] == json.loads(short[2])["error"]["code"] == "server_overloaded"
    assert len({headers["x-request-id"] for _, headers, _ in answers}) == 3
    assert 1 <= int(short[1]["retry-after"]) <= 120
    assert server.metric("tokenmill_request_rejection_total") == before + 3
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200] * 5


def read_answer(line: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer with a length."""
    with line.makefile("rb") as file:
        status = int(file.readline().split()[1])
        fields = iter(lambda: file.readline().decode().rstrip(), "")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        return status, headers, file.read(int(headers["content-length"]))


def test_a_refusal_keeps_the_connection(paused: tuple[Running, Crowd]) -> None:
    """Whoever is told to come back does not pay for a new connection; a large body still ends it."""
    server, crowd = paused
    accepted = crowd.send(5)
    until_waiting(server, 7)
    small = server.post(COMPLETIONS, server.completion())
    assert (small.status_code, small.headers.get("connection")) == (503, None)
    large = server.post(COMPLETIONS, server.completion(prompt="x" * 100_000))
    assert (large.status_code, large.headers.get("connection")) == (503, "close")
    GatedExecutor.gate.set()
    assert statuses(accepted) == [200] * 5
