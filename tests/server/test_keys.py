"""Keys and tenants: SE-01, SE-03, SE-04, SE-05, SE-17, SE-18, SE-24, BI-22, BI-23, and the file of keys."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import random
import stat
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.server.service import MODEL
from tests.server.support import Running, error_of, raw_request, running_server, wait_until
from tokenmill.core.errors import ConfigError
from tokenmill.server.access import door
from tokenmill.server.access.door import Door
from tokenmill.server.access.keys import add_key, new_key, read_keys, revoke_key
from tokenmill.server.app import ENDPOINTS
from tokenmill.server.errors import HttpError
from tokenmill.server.guard import OPEN_PATHS
from tokenmill.server.settings import ServerSettings

COMPLETIONS = "/v1/completions"
PROMPT = list(range(400, 450))


def give_key(path: Path, tenant: str, *, weight: float | None = None, **more: Any) -> str:
    record, key = new_key(tenant=tenant, **more)
    add_key(path, record, weight)
    return key


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def code_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    return str(error_of(response)["code"])


class Guarded:
    """A server with two tenants and an administrator."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self.acme = give_key(self.path, "acme", weight=3.0)
        self.other = give_key(self.path, "other")
        self.admin = give_key(self.path, "ops", admin=True)
        self.server: Running

    def complete(self, key: str, **wishes: Any) -> Any:
        return self.server.post(COMPLETIONS, self.server.completion(**wishes), headers=bearer(key))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    found = Guarded(tmp_path_factory.mktemp("keys"))
    with running_server(ServerSettings(port=0, keys=found.path), policy="fair") as running:
        found.server = running
        yield found


# ---- who comes in ----------------------------------------------------------------------------------


def test_se01_every_route_wants_a_key(guarded: Guarded) -> None:
    """SE-01: of everything that the server answers, three health addresses alone are open; new routes are not."""
    server = guarded.server
    wrong = ({}, {"authorization": "Bearer"}, bearer("tm-000000000000-x"), {"authorization": "Basic YTpi"})
    assert {"/health", "/health/live", "/health/ready"} == OPEN_PATHS
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{id:path}", MODEL).replace("{id}", "x")
        for headers in wrong:
            response = server.http.request(endpoint.method, server.url + path, headers=headers)
            if endpoint.path in OPEN_PATHS:
                assert response.status_code == 200
            else:
                assert code_of(response, 401) == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
    assert code_of(server.get("/nowhere"), 401) == "invalid_api_key", "not even what is there is told"


def test_se01_and_the_right_key_opens_them(guarded: Guarded) -> None:
    assert guarded.complete(guarded.acme).status_code == 200
    assert guarded.server.get("/v1/models", headers=bearer(guarded.other)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"authorization: Bearer \xff\xfe\xfd\r\n",
        b"authorization: Bearer a\xc3\xa9\r\n",
        b"authorization: Bearer " + b"k" * 20_000 + b"\r\n",
        b"authorization: Bearer tm--\r\n",
        b"authorization: Bearer ---\r\n",
        b"authorization:\r\n",
        b"authorization: Bearer a\r\nauthorization: Bearer b\r\n",
    ],
)
def test_se03_hostile_keys(guarded: Guarded, header: bytes) -> None:
    """SE-03: 401 in OpenAI's shape whatever the bytes; a header beyond the parser's limits is a 4xx of HTTP."""
    answer = raw_request(
        guarded.server.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + header + b"\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 401 "), answer[:80]
    assert b'"invalid_api_key"' in answer
    assert b"www-authenticate" in answer


def test_se03_a_nul_and_a_megabyte_end_no_connection_but_their_own(guarded: Guarded) -> None:
    for header in (b"authorization: Bearer a\0b\r\n", b"authorization: Bearer " + b"k" * 2**20 + b"\r\n"):
        answer = raw_request(guarded.server.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert guarded.complete(guarded.acme).status_code == 200


def test_se03_two_right_keys_are_none(guarded: Guarded) -> None:
    line = f"authorization: Bearer {guarded.acme}\r\n".encode()
    answer = raw_request(
        guarded.server.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + 2 * line + b"\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_se04_keys_are_compared_as_hashes_in_constant_time() -> None:
    """The code's half of SE-04: one ``compare_digest`` over SHA-256, and no other comparison that sees a key."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Door.access)))
    calls = [
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert calls.count("compare_digest") == 1
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    names = {name.id for node in compared for name in ast.walk(node) if isinstance(name, ast.Name)}
    assert "key" not in names
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.For)], "no early exit over keys"


def test_se04_the_time_tells_nothing_of_a_secret(tmp_path: Path) -> None:
    """SE-04: keys that agree with a real one to 0, half, or all but the last character take equally long."""
    path = tmp_path / "keys.json"
    key = give_key(path, "acme")
    own = Door(keys=path)
    secret = key[16:]
    wrong = "".join("B" if letter == "A" else "A" for letter in secret)
    guesses = [key[:16] + secret[:n] + wrong[n:] for n in (0, 21, 42)]
    assert all(len(guess) == len(key) and guess != key for guess in guesses)
    headers = [[(b"authorization", f"Bearer {guess}".encode())] for guess in guesses]
    times: list[list[int]] = [[] for _ in guesses]
    order = list(range(len(guesses))) * 4000
    random.Random(1).shuffle(order)
    for which in order:
        started = time.perf_counter_ns()
        try:
            own.access(headers[which])
        except HttpError:
            times[which].append(time.perf_counter_ns() - started)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.45 < share_of_greater(times[a], times[b]) < 0.55


def share_of_greater(a: list[int], b: list[int]) -> float:
    """The Mann-Whitney statistic as a share: how often one of ``b`` is above one of ``a``; 0.5 if they are alike."""
    ranks: dict[int, float] = {}
    values = sorted(a + b)
    i = 0
    while i < len(values):
        j = i
        while j < len(values) and values[j] == values[i]:
            j += 1
        ranks[values[i]] = (i + j + 1) / 2
        i = j
    return (sum(ranks[value] for value in b) - len(b) * (len(b) + 1) / 2) / (len(a) * len(b))


# ---- secrets ---------------------------------------------------------------------------------------


def test_se05_neither_keys_nor_prompts_leak(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """SE-05: not in logs, metrics, errors, the file of keys or what the settings print."""
    server, sentinel = guarded.server, "SENTINEL-prompt-7261"
    with caplog.at_level(logging.DEBUG):
        seen = [
            guarded.complete(guarded.acme, prompt=sentinel),
            guarded.complete(guarded.acme, prompt=sentinel, tenant="x"),
            guarded.complete(guarded.acme, prompt=sentinel, temperature=9),
            guarded.complete(guarded.acme + "x", prompt=sentinel),
            server.get("/metrics", headers=bearer(guarded.admin)),
            server.get("/debug/steps", headers=bearer(guarded.admin)),
        ]
    texts = [response.text for response in seen[1:]] + [caplog.text, guarded.path.read_text()]
    texts += [
        repr(server.app.context.settings),
        repr(ServerSettings(api_key=guarded.acme)),
        repr(server.app.context.door),
    ]
    secret = guarded.acme.split("-", 2)[2]
    for text in texts:
        assert secret not in text
        assert sentinel not in text
    assert secret not in seen[0].text


def test_se05_a_log_line_cannot_be_forged(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = raw_request(
            guarded.server.port,
            b"GET /v1/models%0d%0aERROR%20forged HTTP/1.1\r\nhost: x\r\nx-request-id: a\x1b[31m\r\n"
            b"authorization: Bearer \x1b[31mred\r\nconnection: close\r\n\r\n",
        )
    assert answer.startswith(b"HTTP/1.1 4")
    assert "forged" not in caplog.text
    assert "\x1b" not in caplog.text


# ---- tenants ---------------------------------------------------------------------------------------


def test_the_key_decides_the_tenant(guarded: Guarded) -> None:
    assert guarded.complete(guarded.acme, tenant="acme").status_code == 200
    response = guarded.complete(guarded.acme, tenant="other")
    assert code_of(response, 400) == "invalid_value"
    assert error_of(response)["param"] == "tenant"


def test_priorities_are_bounded_by_the_key(guarded: Guarded) -> None:
    assert guarded.complete(guarded.acme, priority=3).status_code == 200
    response = guarded.complete(guarded.acme, priority=-1)
    assert (response.status_code, error_of(response)["param"]) == (400, "priority")


def cached(guarded: Guarded, key: str, **wishes: Any) -> int:
    response = guarded.complete(key, prompt=PROMPT, max_tokens=1, **wishes)
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_se17_another_tenant_s_prompts_are_never_hit(guarded: Guarded) -> None:
    """SE-17: two hundred probes by another tenant see a miss each; the owner sees a hit each."""
    assert cached(guarded, guarded.acme) == 0
    with ThreadPoolExecutor(8) as pool:
        probes = list(pool.map(lambda number: cached(guarded, guarded.other, cache_salt=f"p{number}"), range(200)))
        own = list(pool.map(lambda _: cached(guarded, guarded.acme), range(50)))
    assert set(probes) == {0}
    assert min(own) > 0


def test_se17_a_probe_computes_the_same_chunks_whether_it_is_known_or_not(guarded: Guarded) -> None:
    """What would make the time differ is the work; it is the same for a prompt that another tenant has warmed."""
    fresh = list(range(600, 650))
    cached(guarded, guarded.acme)
    chunks = []
    for number, prompt in enumerate((PROMPT, fresh)):
        body = {"prompt": prompt, "cache_salt": f"q{number}"}
        response = guarded.complete(guarded.other, **body)
        account = guarded.server.get(f"/v1/requests/{response.headers['x-request-id']}", headers=bearer(guarded.other))
        chunks.append((account.json()["account"]["num_chunks"], account.json()["cached_tokens"]))
    assert chunks[0] == chunks[1]


@pytest.mark.parametrize("salt", ["shared", "4:acme", "acme", "4:acmeshared"])
def test_se18_a_salt_cannot_be_joined(guarded: Guarded, salt: str) -> None:
    """SE-18: another tenant that copies the salt, or makes one up that looks like the inner one, finds nothing."""
    cached(guarded, guarded.acme, cache_salt="shared")
    assert cached(guarded, guarded.acme, cache_salt="shared") > 0
    assert cached(guarded, guarded.other, cache_salt=salt) == 0


# ---- what belongs to everybody ---------------------------------------------------------------------


def test_se24_the_admin_surface_wants_an_admin(guarded: Guarded) -> None:
    server = guarded.server
    for path in ("/metrics", "/debug/steps"):
        assert code_of(server.get(path, headers=bearer(guarded.acme)), 403) == "admin_only"
        assert server.get(path, headers=bearer(guarded.admin)).status_code in (200, 404)
    debugging = {endpoint.path for endpoint in ENDPOINTS if endpoint.path.startswith("/debug")}
    assert {endpoint.path for endpoint in ENDPOINTS if endpoint.admin} == debugging | {"/metrics"}


def test_se24_metrics_are_open_where_the_operator_says_so(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    give_key(path, "acme")
    with running_server(ServerSettings(port=0, keys=path, open_metrics=True)) as server:
        assert server.get("/metrics").status_code == 200
        assert code_of(server.get("/debug/steps"), 401) == "invalid_api_key"


def test_se24_no_page_of_another_origin_may_use_a_key(guarded: Guarded) -> None:
    """No origin is allowed, so a browser shows no answer to a page; and there is no cookie that it would send."""
    headers = {**bearer(guarded.acme), "origin": "https://evil.example"}
    response = guarded.server.get("/v1/models", headers=headers)
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert "set-cookie" not in response.headers


def test_a_request_is_seen_by_its_tenant_only(guarded: Guarded) -> None:
    server = guarded.server
    request_id = guarded.complete(guarded.acme).headers["x-request-id"]
    path = f"/v1/requests/{request_id}"
    assert server.get(path, headers=bearer(guarded.acme)).status_code == 200
    assert server.get(path, headers=bearer(guarded.admin)).status_code == 200
    assert code_of(server.get(path, headers=bearer(guarded.other)), 404) == "request_not_found"


def test_so_is_one_that_still_runs(guarded: Guarded) -> None:
    server = guarded.server
    server.executor.step_s = 0.02
    try:
        with server.http.stream(
            "POST",
            server.url + COMPLETIONS,
            json=server.completion(stream=True, max_tokens=60, ignore_eos=True),
            headers=bearer(guarded.acme),
        ) as response:
            path = f"/v1/requests/{response.headers['x-request-id']}"
            wait_until(lambda: server.stats()["running"] == 1, 5)
            assert server.get(path, headers=bearer(guarded.acme)).json()["state"] == "running"
            assert code_of(server.get(path, headers=bearer(guarded.other)), 404) == "request_not_found"
    finally:
        server.executor.step_s = 0.0
    server.wait_idle(5)


# ---- identifiers -----------------------------------------------------------------------------------

HOSTILE = ("a\0b", "a/b", "a@b", "a\\b", "a\r\nx: y", "x" * 10_000, "😀")


@pytest.mark.parametrize("value", HOSTILE)
def test_bi22_salts_and_tenants_are_names(server: Running, value: str) -> None:
    """BI-22: what may become part of a key elsewhere holds no separator, no control character, no megabyte."""
    for field in ("cache_salt", "tenant"):
        response = server.post(COMPLETIONS, server.completion(**{field: value}))
        assert (response.status_code, error_of(response)["param"]) == (400, field)
        assert value not in response.text or len(value) < 4


@pytest.mark.parametrize("value", ["a\0b", "a\r\nx: y", "x" * 10_000, "😀"])
@pytest.mark.parametrize("field", ["user", "safety_identifier", "prompt_cache_key"])
def test_bi22_identifiers_are_printable_and_short(
    server: Running, caplog: pytest.LogCaptureFixture, field: str, value: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        response = server.post("/v1/chat/completions", server.chat(**{field: value}))
    assert (response.status_code, error_of(response)["param"]) == (400, field)
    assert value not in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("safety_identifier", "x" * 65, "safety_identifier"),
        ("metadata", {f"k{n}": "v" for n in range(17)}, "metadata"),
        ("metadata", {"k": "v" * 513}, "metadata.k"),
        ("metadata", {"k" * 65: "v"}, "metadata"),
    ],
)
def test_bi22_limits_of_identifiers(server: Running, field: str, value: Any, path: str) -> None:
    response = server.post("/v1/chat/completions", server.chat(**{field: value}))
    assert response.status_code == 400, response.text
    assert str(error_of(response)["param"]).startswith(path)


def test_bi23_the_request_s_id_is_never_the_client_s(server: Running) -> None:
    """BI-23: fifty at once with the same id get an id and an answer of their own each."""

    def send(number: int) -> tuple[str, str]:
        response = server.post(
            COMPLETIONS, server.completion(prompt=[500 + number], seed=number), headers={"x-request-id": "mine"}
        )
        assert response.status_code == 200, response.text
        return response.headers["x-request-id"], response.json()["choices"][0]["text"]

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(send, range(50)))
    assert len({request_id for request_id, _ in together}) == 50
    assert all(request_id.startswith("req_") for request_id, _ in together)
    assert [text for _, text in together] == [send(number)[1] for number in range(50)], "answers went to the wrong one"


@pytest.mark.parametrize("value", [b"x" * 10_000, b"a\xff\xfe", b"a b\tc"])
def test_bi23_a_strange_id_is_not_echoed(server: Running, value: bytes) -> None:
    answer = raw_request(
        server.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: " + value + b"\r\n\r\n"
    )
    head = answer.partition(b"\r\n\r\n")[0]
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert value not in head
    assert b"x-request-id: req_" in head


# ---- the file --------------------------------------------------------------------------------------


def test_the_file_holds_no_key_and_is_its_owner_s(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = give_key(path, "acme")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_text()
    assert len(key.split("-", 2)[2]) >= 43, "256 random bits"
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"], "nothing is left beside it"


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: give_key(path, f"t{number}"), range(40)))
    assert {record.tenant for record in read_keys(path).keys} == {f"t{number}" for number in range(40)}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "whole"),
        ("[]", "whole"),
        ('{"keys": 3}', "keys"),
        ('{"keys": [{"id": "x"}]}', "keys.0"),
        ('{"keys": [], "extra": 1}', "extra"),
        ('{"tenants": {"a": {"weight": -1}}}', "tenants.a.weight"),
        ('{"tenants": {"a": {"weight": NaN}}}', "tenants.a.weight"),
        ('{"tenants": {"a": {"requests_per_minute": 0}}}', "tenants.a.requests_per_minute"),
        ('{"tenants": {"a": {"max_concurrent": "3"}}}', "tenants.a.max_concurrent"),
    ],
)
def test_a_wrong_file_is_refused_by_its_field(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=named):
        Door(keys=path)


def test_a_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    give_key(path, "acme")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod 600"):
        Door(keys=path)


def test_an_absent_file_and_two_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Door(keys=tmp_path / "none.json")
    with pytest.raises(ConfigError, match="not both"):
        ServerSettings(api_key="x", keys=tmp_path / "keys.json")


def opens(own: Door, key: str) -> bool:
    try:
        own.access([(b"authorization", f"Bearer {key}".encode())])
    except HttpError:
        return False
    return True


def test_keys_expire_and_are_revoked(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    now = datetime.now(UTC)
    short = give_key(path, "acme", expires=now + timedelta(seconds=60))
    key = give_key(path, "acme")
    clock = [now.timestamp()]
    own = Door(keys=path, clock=lambda: clock[0])
    assert opens(own, short)
    assert opens(own, key)
    clock[0] += 61
    assert not opens(own, short)
    revoke_key(path, key.split("-")[1])
    own.read_again()
    assert not opens(own, key)
    with pytest.raises(ConfigError, match="no key"):
        revoke_key(path, "000000000000")


def test_rotation_needs_no_restart(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old and the new key overlap; then the old one goes. The server only looks at the file."""
    monkeypatch.setattr(door, "POLL_S", 0.02)
    new = give_key(guarded.path, "acme")
    wait_until(lambda: guarded.complete(new).status_code == 200, 10)
    assert guarded.complete(guarded.acme).status_code == 200
    revoke_key(guarded.path, new.split("-")[1])
    wait_until(lambda: guarded.complete(new).status_code == 401, 10)
    assert guarded.complete(guarded.acme).status_code == 200


def test_a_broken_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.json"
    key = give_key(path, "acme")
    own = Door(keys=path)
    whole = path.read_text()
    for broken in (whole[: len(whole) // 2], "", "{}"):
        path.write_text(broken)
        own.read_again()
        assert opens(own, key) == (broken != "{}"), "an empty book is a good one: nobody comes in"
        if broken:
            path.write_text(whole)
            own.read_again()
    path.unlink()
    caplog.clear()
    own._entries = {}
    path.write_text(whole)
    own.read_again()
    os.unlink(path)
    own.read_again()
    assert opens(own, key)
    assert "the keys stay as they were" in caplog.text
    assert json.loads(whole)["keys"][0]["sha256"] not in caplog.text
