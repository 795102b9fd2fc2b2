"""Bodies that are no proper JSON: BI-01 to BI-04, BI-24, for every route of the live table that takes one."""

from __future__ import annotations

import gzip
import json
import resource
import time

import httpx
import pytest

from tests.server.support import SMALL, Running, error_of
from tokenmill.server import jsonio
from tokenmill.server.app import ENDPOINTS

JSON_ROUTES = [endpoint.path for endpoint in ENDPOINTS if endpoint.body is not None]
FIRST_FIELD = {
    "/v1/chat/completions": "model",
    "/v1/completions": "model",
    "/v1/responses": "model",
    "/v1/responses/input_tokens": "input",
    "/v1/embeddings": "model",
    "/v1/batches": "input_file_id",
    "/tokenize": "prompt",
    "/detokenize": "tokens",
}
EVERY_ROUTE = pytest.mark.parametrize("path", JSON_ROUTES)


def quickest(ask: object, times: int = 3) -> float:
    """The server's own time for an answer in seconds: the least of a few, since the machine is shared."""
    assert callable(ask)
    responses: list[httpx.Response] = [ask() for _ in range(times)]
    assert all(response.status_code == 400 for response in responses)
    return min(int(response.headers["openai-processing-ms"]) for response in responses) / 1000


def test_there_is_a_case_for_every_json_route() -> None:
    assert set(JSON_ROUTES) == set(FIRST_FIELD)


@EVERY_ROUTE
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{} x",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"\xff",
        b"{'a': 1}",
        b"{,}",
    ],
)
def test_bi01_what_is_no_json_object_is_refused(server: Running, path: str, body: bytes) -> None:
    """BI-01."""
    response = server.post(path, body)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


@EVERY_ROUTE
def test_bi01_a_missing_field_is_named(server: Running, path: str) -> None:
    """BI-01."""
    error = error_of(server.post(path, {}))
    assert (error["param"], error["code"]) == (FIRST_FIELD[path], "missing_required_parameter")


@EVERY_ROUTE
@pytest.mark.parametrize(
    "kind", ["text/plain", None, "multipart/form-data; boundary=x", "application/json; charset=utf-16"]
)
def test_bi02_other_content_types_are_refused(server: Running, path: str, kind: str | None) -> None:
    """BI-02."""
    headers = {} if kind is None else {"content-type": kind}
    response = server.http.post(server.url + path, content=b"{}", headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


@EVERY_ROUTE
def test_bi02_nothing_is_decompressed(server: Running, path: str) -> None:
    """BI-02: ten megabytes that would become ten gigabytes cost nothing."""
    bomb = gzip.compress(bytes(10_000_000))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    response = server.post(path, bomb, headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert response.status_code == 415
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 8 * 1024


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000], ids=["arrays", "objects"])
@pytest.mark.parametrize("field", ["stop", "messages", "tools", "metadata", "prompt", "tokens"])
@EVERY_ROUTE
def test_bi03_deep_nesting_is_refused_quickly(server: Running, path: str, field: str, nested: bytes) -> None:
    """BI-03."""
    body = b'{"model": "test/model", "' + field.encode() + b'": ' + nested
    assert error_of(server.post(path, body))["code"] == "invalid_json"
    assert quickest(lambda: server.post(path, body)) < 0.05


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "1e400", "1E+308", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["n", "max_tokens", "seed", "top_logprobs"])
def test_bi04_numbers_beyond_all_bounds_name_their_field(server: Running, field: str, number: str) -> None:
    """BI-04."""
    fields = {**server.chat(logprobs=True), field: 0}
    body = json.dumps(fields).replace(f'"{field}": 0', f'"{field}": {number}').encode()
    assert error_of(server.post("/v1/chat/completions", body))["param"] == field
    assert quickest(lambda: server.post("/v1/chat/completions", body)) < 0.05


def test_bi04_as_a_token_id(server: Running) -> None:
    """BI-04."""
    body = b'{"model": "test/model", "prompt": [1, ' + b"9" * 5000 + b"]}"
    assert error_of(server.post("/v1/completions", body))["param"] == "prompt"


@EVERY_ROUTE
def test_bi24_duplicate_keys_are_refused(server: Running, path: str) -> None:
    """BI-24: at any depth."""
    for body in (b'{"n": 1, "n": 100000}', b'{"a": [{"b": 1, "b": 2}]}'):
        error = error_of(server.post(path, body))
        assert error["code"] == "invalid_json"
        assert "twice" in error["message"]


@EVERY_ROUTE
def test_bi24_unknown_fields_are_refused_with_the_near_name(server: Running, path: str) -> None:
    """BI-24."""
    right = max(SMALL[path], key=len)
    wrong = right[:-2] + right[:-3:-1]
    error = error_of(server.post(path, {**SMALL[path], wrong: 1}))
    assert (error["param"], error["code"]) == (wrong, "unknown_parameter")
    assert right in error["message"]


@EVERY_ROUTE
def test_the_same_bodies_are_taken_when_right(server: Running, path: str) -> None:
    """But for the batch, whose file is not there."""
    assert server.post(path, SMALL[path]).status_code == (404 if path == "/v1/batches" else 200)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}', '["\\ud83d", "\\ude00"]'])
def test_lone_surrogates_are_no_text(text: str) -> None:
    with pytest.raises(jsonio.InvalidRequest, match="UTF-8"):
        jsonio.loads(text.encode())


def test_surrogate_pairs_are_characters() -> None:
    assert jsonio.loads(b'"\\ud83d\\ude00"') == "😀"


def test_finding_the_duplicate_among_many_keys_is_quick() -> None:
    text = "{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"199999":1}'
    started_s = time.monotonic()
    with pytest.raises(jsonio.InvalidRequest, match="'199999'"):
        jsonio.loads(text.encode())
    assert time.monotonic() - started_s < 5


def test_answers_never_hold_what_json_cannot() -> None:
    """NU-06: every byte is for a strict parser."""
    value = {"a": [float("nan"), float("inf"), 1e-9], "é": "\ud800 \x00"}
    text = jsonio.dumps(value).decode()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(jsonio.dumps([float("nan"), -float("inf"), 1e-9]), parse_constant=refuse) == [None, None, 1e-9]
    assert text.startswith('{"a":')
    assert jsonio.dumps({"é": "\x00\u2028"}) == '{"é":"\\u0000\u2028"}'.encode()
