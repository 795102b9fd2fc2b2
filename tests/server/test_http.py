"""The door: HT-03, HT-08, keys, deadlines, ids, cross-origin, metrics and the published description."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from starlette.routing import Route

from tests.server.service import MODEL
from tests.server.support import Running, error_of, raw_request, running_server
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.server.guard import OPEN_PATHS
from tokenmill.server.serve import bind
from tokenmill.server.settings import ServerSettings

KEY = "sk-secret-Ünïcode"
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")


def live_routes(server: Running) -> list[Route]:
    """The table that requests are really dispatched by."""
    routes = [route for route in server.app.app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]
    assert len(routes) == len(server.app.app.routes)  # type: ignore[attr-defined]
    return routes


def concrete(path: str) -> str:
    return path.replace("{id:path}", MODEL).replace("{id}", "req_0")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with running_server(ServerSettings(port=0, api_key=KEY)) as running:
        yield running


# ---- bodies ----------------------------------------------------------------------------------------


def test_ht03_an_announced_body_that_is_too_large_is_not_read(server: Running) -> None:
    """HT-03: refused on its header alone, and the connection is closed."""
    head = HEAD + b"content-length: 34603008\r\n\r\n"
    raw_request(server.port, head)  # what is imported and compiled at the first time
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.monotonic()
    answer = raw_request(server.port, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b'"request_too_large"' in answer
    assert time.monotonic() - started_s < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 1024


def test_ht03_an_endless_chunked_body_is_cut_off(server: Running) -> None:
    """HT-03: no more than the limit is ever kept."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (2**20, b" " * 2**20)
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                sock.sendall(chunk)
                sent += 1
        assert sent < 400, "the server went on reading"
        with contextlib.suppress(ConnectionError):
            assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_ht03_the_official_client_is_told(server: Running) -> None:
    """HT-03: it gets the answer although it is still sending."""
    with pytest.raises(openai.APIStatusError) as caught:
        server.client().completions.create(model=MODEL, prompt="a" * 33 * 2**20)
    assert caught.value.status_code == 413


def test_a_body_that_does_not_come_is_a_timeout(server: Running) -> None:
    """HT-02's first half: 408 after the deadline, and nothing was begun."""
    requests = server.stats()["requests"]
    answer = raw_request(server.port, HEAD + b"content-length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer
    assert server.stats()["requests"] == requests


# ---- methods and paths -----------------------------------------------------------------------------


def test_ht08_every_method_on_every_path(server: Running) -> None:
    """HT-08: the right one, or 405 with Allow and an error body."""
    for route in live_routes(server):
        assert route.methods is not None
        for method in METHODS:
            response = server.http.request(method, server.url + concrete(route.path))
            if method in route.methods:
                assert response.status_code != 405
                continue
            assert response.status_code == 405, (method, route.path)
            assert set(response.headers["allow"].split(", ")) == route.methods
            if method != "HEAD":
                assert error_of(response)["code"] == "method_not_allowed"


STRANGE = [
    "//v1//models",
    "/v1/models//",
    "/v1/../metrics",
    "/v1/%2e%2e/metrics",
    "/metrics%00",
    "/V1/models",
    "/v1/models/",
    "/v1/chat/completions/",
    "/metrics/",
    "/health/live/",
    "/%2Fmetrics",
    "/health/../metrics",
    "/health/live/../../metrics",
    "/health%2flive",
    "/nothing",
    "/v1/models/%00",
    "/v1/models/%ff",
]


def raw_get(port: int, path: str, headers: str = "") -> bytes:
    return raw_request(port, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n".encode())


@pytest.mark.parametrize("path", STRANGE)
def test_ht08_addresses_are_taken_literally(server: Running, path: str) -> None:
    """HT-08: nothing is normalised into another address."""
    answer = raw_get(server.port, path)
    allowed = (b"HTTP/1.1 200 ",) if path == "/health%2flive" else (b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")
    assert answer.startswith(allowed), answer
    if b" 404 " in answer[:20]:
        assert b'{"error":{"message":' in answer


@pytest.mark.parametrize("path", STRANGE)
def test_ht08_a_strange_address_opens_no_door(guarded: Running, path: str) -> None:
    """HT-08: without the key, nothing but health is told, however the address is spelt."""
    answer = raw_get(guarded.port, path)
    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")) or path == "/health%2flive", answer


def test_ht08_the_host_header_decides_nothing(guarded: Running) -> None:
    """HT-08: an address put together from headers would be ``/health/…`` here."""
    answer = raw_request(guarded.port, b"GET /v1/models HTTP/1.1\r\nhost: x/health/live?\r\nconnection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")), answer


# ---- keys ------------------------------------------------------------------------------------------


def test_every_route_but_health_wants_the_key(guarded: Running) -> None:
    for route in live_routes(guarded):
        for method in ("GET", "POST"):
            response = guarded.http.request(method, guarded.url + concrete(route.path))
            if route.path in OPEN_PATHS:
                assert response.status_code in (200, 405)
                continue
            assert response.status_code == 401, route.path
            assert error_of(response)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b"Bearer"],
        [b"Bearer wrong"],
        [b"Basic " + KEY.encode()],
        [KEY.encode()],
        [b"Bearer \xff\xfe"],
        [b"Bearer " + b"x" * 8000],
        [b"Bearer " + KEY.encode(), b"Bearer " + KEY.encode()],
        [b"Bearer wrong", b"Bearer " + KEY.encode()],
    ],
    ids=range(9),
)
def test_a_wrong_key_is_401(guarded: Running, values: list[bytes]) -> None:
    headers = [(b"authorization", value) for value in values]
    response = guarded.http.get(guarded.url + "/v1/models", headers=headers)
    assert response.status_code == 401
    assert error_of(response)["type"] == "invalid_request_error"


def test_the_right_key_opens(guarded: Running) -> None:
    headers = [(b"authorization", b"Bearer " + KEY.encode())]
    assert guarded.http.get(guarded.url + "/v1/models", headers=headers).status_code == 200


def test_the_official_client_names_a_wrong_key(guarded: Running) -> None:
    """AC-03."""
    with pytest.raises(openai.AuthenticationError) as caught:
        guarded.client().models.list()
    assert caught.value.code == "invalid_api_key"


# ---- identity --------------------------------------------------------------------------------------


def test_ids_are_made_here_and_are_unique(server: Running) -> None:
    """A client's own id is ignored."""
    headers = {"x-request-id": "req_mine"}
    made = {server.get("/v1/models", headers=headers).headers["x-request-id"] for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", name) for name in made)


def test_every_answer_says_how_long_it_took(server: Running) -> None:
    response = server.post("/v1/completions", server.completion())
    assert 0 <= int(response.headers["openai-processing-ms"]) < 10_000


def test_an_unknown_request_is_404(server: Running) -> None:
    response = server.get("/v1/requests/req_nobody")
    assert response.status_code == 404
    assert error_of(response)["code"] == "request_not_found"


def test_prompts_of_one_request_are_explained_together(server: Running) -> None:
    answer = server.post("/v1/completions", server.completion(prompt=["a", "b", "c"])).json()
    account = server.get(f"/v1/requests/{answer['id']}").json()
    assert len(account["prompts"]) == 2
    for part in (account, *account["prompts"]):
        assert sum(cause["seconds"] for cause in part["causes"]) == pytest.approx(part["total_s"])


def test_the_fingerprint_is_the_same_for_every_answer(server: Running) -> None:
    made = {server.post("/v1/completions", server.completion()).json()["system_fingerprint"] for _ in range(3)}
    assert len(made) == 1


# ---- cross-origin ----------------------------------------------------------------------------------


def test_browsers_of_other_origins_are_not_answered_by_default(server: Running) -> None:
    response = server.get("/v1/models", headers={"origin": "https://elsewhere.example"})
    assert not any(name.startswith("access-control") for name in response.headers)


def test_named_origins_are() -> None:
    settings = ServerSettings(port=0, cors_origins=("https://app.example",))
    with running_server(settings) as running:
        response = running.get("/v1/models", headers={"origin": "https://app.example"})
        other = running.get("/v1/models", headers={"origin": "https://elsewhere.example"})
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in other.headers


# ---- what others read ------------------------------------------------------------------------------


def test_the_description_lists_exactly_the_live_routes(server: Running) -> None:
    document = server.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    live = {
        (route.path.replace(":path", ""), method)
        for route in live_routes(server)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == live


def test_the_descriptions_references_lead_somewhere(server: Running) -> None:
    document = server.get("/openapi.json").json()

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (node["$ref"],) if "$ref" in node else ()
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                yield from references(item)

    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert {"ChatRequest", "CompletionRequest"} <= names
    assert names <= set(document["components"]["schemas"])


def test_the_index_and_head(server: Running) -> None:
    index = server.get("/").json()
    assert index["model"] == MODEL
    assert "POST /v1/chat/completions" in index["endpoints"]
    head = server.http.head(server.url + "/v1/models")
    assert head.status_code == 200
    assert head.content == b""


def test_health(server: Running) -> None:
    for path in OPEN_PATHS:
        response = server.get(path)
        assert response.status_code == 200
        body = response.json()
        assert (body["status"], body["state"], body["why"]) == ("ok", "ready", None)
        assert body["since"] <= time.time()


def test_metrics_count_what_happened(server: Running) -> None:
    names = {
        "tokenmill_prompt_tokens_total": 4.0,
        "tokenmill_generation_tokens_total": 10.0,
        "tokenmill_time_to_first_token_seconds_count": 1.0,
        "tokenmill_inter_token_latency_seconds_count": 8.0,
        "tokenmill_e2e_request_latency_seconds_count": 1.0,
        "tokenmill_request_queue_time_seconds_count": 1.0,
        "tokenmill_request_success_total": 2.0,
    }
    before = {name: server.metric(name) if name in server.get("/metrics").text else 0.0 for name in names}
    assert server.post("/v1/completions", server.completion(max_tokens=5, n=2)).status_code == 200
    assert {name: server.metric(name) - before[name] for name in names} == names
    assert server.metric("tokenmill_kv_cache_usage_perc") == 0.0
    assert server.metric("tokenmill_num_requests_running") == 0.0
    assert server.metric("tokenmill_iterations_total") > 0
    rejected = 'tokenmill_request_rejection_total{code="unknown_parameter"}'
    server.post("/v1/completions", server.completion(x=1))
    assert rejected in server.get("/metrics").text
    assert 'tokenmill_http_responses_total{path="/v1/completions",status="200"}' in server.get("/metrics").text
    server.get("/made/up/by/a/client")
    assert "made/up" not in server.get("/metrics").text


def test_tokens_there_and_back(server: Running) -> None:
    text = "Once upon a time, 😀 <|im_end|>"
    tokens = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == server.service.max_context
    assert server.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": text}
    both = server.post("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]})
    assert error_of(both)["param"] == "prompt"
    beyond = server.post("/detokenize", {"tokens": [server.service.vocab_size]})
    assert error_of(beyond)["param"] == "tokens"
    chat = server.chat()
    asked = server.post("/tokenize", {"messages": chat["messages"]}).json()["count"]
    assert server.post("/v1/chat/completions", chat).json()["usage"]["prompt_tokens"] == asked


# ---- starting --------------------------------------------------------------------------------------


def test_small_pieces_leave_at_once(server: Running) -> None:
    """With Nagle's algorithm on, every second piece of an answer or a stream would wait 40 ms for the client."""
    assert server.get("/health/live").status_code == 200
    connections = list(server.server.server_state.connections)
    assert connections
    for connection in connections:
        sock = connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError) as caught:
            bind(ServerSettings(port=port))
    assert f"port {port} is in use" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SetupError, match=r"cannot listen on 192\.0\.2\.1"):
        bind(ServerSettings(host="192.0.2.1", port=0))


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70000}, {"max_body_bytes": 0}, {"api_key": ""}, {"drain_timeout_s": -1.0}, {"write_stall_s": 0.0}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServerSettings(**wrong)


def test_an_unexpected_failure_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as running:
        monkeypatch.setattr(running.service, "explain", lambda name: 1 / 0)
        response = running.get("/v1/requests/req_1")
        assert response.status_code == 500
        error = error_of(response)
        assert (error["type"], error["code"], error["param"]) == ("server_error", "server_error", None)
        assert response.headers["x-request-id"] in error["message"]
        assert "division" not in response.text
        with pytest.raises(openai.InternalServerError):
            running.client().get("/requests/req_1", cast_to=httpx.Response)
