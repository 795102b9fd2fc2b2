"""Rate limits: token buckets in a time of their own, and what a client sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.support import Running, error_of, running_server
from tests.server.test_keys import bearer, give_key
from tokenmill.core.errors import RateLimited
from tokenmill.server.access import Access, Limits
from tokenmill.server.access.keys import KeyBook, TenantRecord, read_keys
from tokenmill.server.access.meters import Meters, _duration
from tokenmill.server.settings import ServerSettings

COMPLETIONS = "/v1/completions"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def access(key: Limits | None = None, tenant: Limits | None = None, key_id: str = "k") -> Access:
    return Access("acme", key_id, limits=key or Limits(), tenant_limits=tenant or Limits())


def test_a_bucket_holds_a_minute_s_worth_and_fills_evenly() -> None:
    clock = Clock()
    meters, who = Meters(clock), access(Limits(requests_per_minute=6))
    for _ in range(6):
        meters.charge_request(who)
    with pytest.raises(RateLimited) as caught:
        meters.charge_request(who)
    assert caught.value.retry_after_s == pytest.approx(10.0)
    clock.now += 10.0
    meters.charge_request(who)
    with pytest.raises(RateLimited):
        meters.charge_request(who)
    clock.now += 3600.0
    assert [outcome(meters, who) for _ in range(8)].count("ok") == 6, "it holds no more than a minute's worth"


def outcome(meters: Meters, who: Access) -> str:
    try:
        meters.charge_request(who)
    except RateLimited:
        return "limited"
    return "ok"


def test_tokens_are_reserved_and_the_unused_given_back() -> None:
    clock = Clock()
    meters, who = Meters(clock), access(Limits(tokens_per_minute=100))
    first = meters.reserve(who, 80)
    with pytest.raises(RateLimited, match="20 are left and 30 were asked for") as caught:
        meters.reserve(who, 30)
    assert caught.value.retry_after_s == pytest.approx(6.0)
    first.close(25)
    first.close(25)
    meters.reserve(who, 75)
    with pytest.raises(RateLimited):
        meters.reserve(who, 1)


def test_more_than_was_reserved_is_a_debt() -> None:
    clock = Clock()
    meters, who = Meters(clock), access(Limits(tokens_per_minute=60))
    meters.reserve(who, 10).close(90)
    with pytest.raises(RateLimited) as caught:
        meters.reserve(who, 1)
    assert caught.value.retry_after_s == pytest.approx(31.0)


def test_what_can_never_fit_is_not_to_be_tried_again() -> None:
    with pytest.raises(RateLimited) as caught:
        Meters(Clock()).reserve(access(Limits(tokens_per_minute=100)), 101)
    assert (caught.value.retry_after_s, caught.value.param) == (None, "max_tokens")


def test_two_keys_of_a_tenant_share_its_limits() -> None:
    """So rotating keys doubles nothing."""
    meters, tenant = Meters(Clock()), Limits(requests_per_minute=3)
    for key_id in ("a", "b", "a"):
        meters.charge_request(access(tenant=tenant, key_id=key_id))
    for key_id in ("a", "b"):
        with pytest.raises(RateLimited, match="tenant acme"):
            meters.charge_request(access(tenant=tenant, key_id=key_id))


def test_a_refusal_takes_nothing() -> None:
    meters, clock = Meters(clock := Clock()), clock
    who = access(Limits(requests_per_minute=60), Limits(requests_per_minute=1))
    meters.charge_request(who)
    for _ in range(70):
        assert outcome(meters, who) == "limited"
    assert dict(meters.headers(access(Limits(requests_per_minute=60))))[b"x-ratelimit-remaining-requests"] == b"59"


def test_limits_may_change_while_the_server_runs() -> None:
    meters = Meters(Clock())
    meters.charge_request(access(Limits(requests_per_minute=600)))
    assert [outcome(meters, access(Limits(requests_per_minute=2))) for _ in range(3)] == ["ok", "ok", "limited"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.02, "20ms"), (1.0, "1s"), (1.5, "1.5s"), (59.9996, "1m0s"), (360.0, "6m0s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


# ---- over HTTP -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    path = tmp_path_factory.mktemp("limits") / "keys.json"
    give_key(path, "other")
    with running_server(ServerSettings(port=0, keys=path), step_s=0.002) as running:
        yield running, path


def key_with(limited: tuple[Running, Path], **limits: Any) -> tuple[Running, str]:
    server, path = limited
    key = give_key(path, "t" + str(abs(hash(str(limits)))), **limits)
    server.app.context.door.read_again()
    return server, key


def test_the_headers_are_on_every_answer(limited: tuple[Running, Path]) -> None:
    server, key = key_with(limited, requests_per_minute=10, tokens_per_minute=1000)
    first = server.post(COMPLETIONS, server.completion(max_tokens=4), headers=bearer(key))
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "10"
    assert first.headers["x-ratelimit-remaining-requests"] == "9"
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert 970 <= int(first.headers["x-ratelimit-remaining-tokens"]) < 1000
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    for response in (
        server.get("/v1/models", headers=bearer(key)),
        server.get("/nowhere", headers=bearer(key)),
        server.post(COMPLETIONS, server.completion(temperature=9), headers=bearer(key)),
    ):
        assert int(response.headers["x-ratelimit-remaining-requests"]) <= 9
    assert "x-ratelimit-limit-requests" not in server.get("/v1/models").headers


def test_too_many_requests(limited: tuple[Running, Path]) -> None:
    server, key = key_with(limited, requests_per_minute=2)
    for _ in range(2):
        assert server.post("/tokenize", {"model": "test/model", "prompt": "x"}, headers=bearer(key)).status_code == 200
    response = server.post(COMPLETIONS, server.completion(), headers=bearer(key))
    assert response.status_code == 429
    error = error_of(response)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert server.get("/v1/models", headers=bearer(key)).status_code == 200, "looking costs nothing"


def test_too_many_tokens(limited: tuple[Running, Path]) -> None:
    server, key = key_with(limited, tokens_per_minute=60)
    body = server.completion(max_tokens=40, ignore_eos=True)
    assert server.post(COMPLETIONS, body, headers=bearer(key)).status_code == 200
    response = server.post(COMPLETIONS, body, headers=bearer(key))
    assert (response.status_code, error_of(response)["code"]) == (429, "rate_limit_exceeded")
    never = server.post(COMPLETIONS, server.completion(max_tokens=100), headers=bearer(key))
    assert never.status_code == 429
    assert never.headers["x-should-retry"] == "false"
    assert "retry-after" not in never.headers


def test_the_official_client_raises_the_right_class(limited: tuple[Running, Path]) -> None:
    server, key = key_with(limited, requests_per_minute=1)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
    client.completions.create(**server.completion())
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(**server.completion())
    assert caught.value.code == "rate_limit_exceeded"


def test_at_most_so_many_at_a_time(limited: tuple[Running, Path]) -> None:
    server, key = key_with(limited, max_concurrent=1)
    body = server.completion(stream=True, max_tokens=400, ignore_eos=True)
    server.executor.step_s = 0.02  # it must not end meanwhile
    with server.http.stream("POST", server.url + COMPLETIONS, json=body, headers=bearer(key)) as response:
        next(response.iter_bytes())
        second = server.post(COMPLETIONS, server.completion(), headers=bearer(key))
    server.executor.step_s = 0.002
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    server.wait_idle(5)
    assert server.post(COMPLETIONS, server.completion(), headers=bearer(key)).status_code == 200


def test_nothing_is_kept_of_requests_that_failed(limited: tuple[Running, Path]) -> None:
    """Refused, invalid and abandoned requests give their tokens back."""
    server, key = key_with(limited, tokens_per_minute=100_000, max_concurrent=2)
    for body in (
        server.completion(max_tokens=4000),
        server.completion(prompt=[10**6]),
        server.completion(n=3, best_of=2),
    ):
        assert server.post(COMPLETIONS, body, headers=bearer(key)).status_code == 400
    stream = server.completion(stream=True, max_tokens=400, ignore_eos=True)
    for _ in range(5):
        with server.http.stream("POST", server.url + COMPLETIONS, json=stream, headers=bearer(key)) as response:
            next(response.iter_bytes())
        server.wait_idle(5)
    left = server.post(COMPLETIONS, server.completion(), headers=bearer(key)).headers["x-ratelimit-remaining-tokens"]
    assert int(left) > 95_000


def test_a_book_s_weights_and_limits_reach_the_request(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    give_key(path, "acme", weight=3.0, requests_per_minute=5)
    book = read_keys(path)
    book.tenants["acme"] = TenantRecord(weight=3.0, tokens_per_minute=7)
    found = KeyBook.model_validate(book.model_dump()).access(book.keys[0])
    assert (found.tenant, found.weight, found.best_priority) == ("acme", 3.0, 0)
    assert (found.limits.requests_per_minute, found.tenant_limits.tokens_per_minute) == (5, 7)
