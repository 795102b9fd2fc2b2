"""Answers and errors against OpenAI's own types: AC-02, AC-03, AC-12."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ConfigDict, TypeAdapter, with_config

from tests.server.service import MODEL
from tests.server.support import SMALL, Running, error_of, events
from tokenmill.server.app import ENDPOINTS
from tokenmill.server.protocol.base import ErrorBody

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON_ROUTES = [endpoint.path for endpoint in ENDPOINTS if endpoint.body is not None and endpoint.path != "/v1/batches"]
"""Of those that name a model; what is wrong with a batch is in ``test_batches.py``."""


def test_ac02_chat_answers_have_openais_shape(server: Running) -> None:
    """AC-02: valid for the official types without coercion, and the required nulls are there."""
    for wish in ({}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["e"], "max_tokens": 40}):
        body = server.post(CHAT, server.chat(**wish)).json()
        ChatCompletion.model_validate(body, strict=True)
        TypeAdapter(endpoint(CHAT).answer).validate_python(body, strict=True)
        assert {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"} <= set(body)
        for choice in body["choices"]:
            assert {"index", "message", "logprobs", "finish_reason"} <= set(choice)
            assert set(choice["message"]) == {"role", "content", "refusal"}
            assert choice["message"]["refusal"] is None
            assert choice["finish_reason"] in ("stop", "length")
            assert ("logprobs" in wish) == (choice["logprobs"] is not None)


def test_the_tokenizer_tells_its_special_tokens(server: Running) -> None:
    info = server.get("/tokenizer_info").json()
    TypeAdapter(endpoint("/tokenizer_info").answer).validate_python(info, strict=True)
    assert info["eos_token"] and "messages" in info["chat_template"]


def test_ac02_chat_chunks_have_openais_shape(server: Running) -> None:
    """AC-02."""
    body = server.chat(stream=True, n=2, logprobs=True, top_logprobs=1, stream_options={"include_usage": True})
    *chunks, done = events(server.post(CHAT, body).text)
    assert done == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        TypeAdapter(endpoint(CHAT).chunk).validate_python(chunk, strict=True)
        for choice in chunk["choices"]:
            assert {"index", "delta", "logprobs", "finish_reason"} <= set(choice)


@pytest.mark.parametrize("wish", [{}, {"logprobs": 2}, {"echo": True, "logprobs": 0}, {"prompt": [[300], [301, 302]]}])
def test_ac02_completions_have_openais_shape(server: Running, wish: dict[str, Any]) -> None:
    """AC-02."""
    body = server.post(COMPLETIONS, server.completion(**wish)).json()
    for choice in body["choices"]:
        assert {"index", "text", "logprobs", "finish_reason"} <= set(choice)
    TypeAdapter(endpoint(COMPLETIONS).answer).validate_python(body, strict=True)
    if "echo" not in wish:  # OpenAI's type has no place for the null before a prompt's first token
        Completion.model_validate(body, strict=True)
    *chunks, _ = events(server.post(COMPLETIONS, server.completion(**wish, stream=True)).text)
    for chunk in chunks:
        TypeAdapter(endpoint(COMPLETIONS).chunk).validate_python(chunk, strict=True)
        assert chunk["object"] == "text_completion"


def endpoint(path: str) -> Any:
    return next(e for e in ENDPOINTS if e.path == path)


@pytest.mark.parametrize("path", ["/", "/v1/models", f"/v1/models/{MODEL}", "/health", "/health/live", "/health/ready"])
def test_ac02_the_other_answers_are_as_described(server: Running, path: str) -> None:
    """AC-02: nothing undescribed, nothing missing."""
    described = endpoint(path.replace(MODEL, "{id:path}")).answer
    strict = with_config(ConfigDict(extra="forbid"))(described)
    TypeAdapter(strict).validate_python(server.get(path).json(), strict=True)


def test_ac12_models(server: Running) -> None:
    """AC-12: ids with slashes both ways; unknown ones by OpenAI's code."""
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list"
    for model in listed["data"]:
        Model.model_validate(model, strict=True)
    for spelt in (MODEL, MODEL.replace("/", "%2F")):
        assert server.get(f"/v1/models/{spelt}").json() == listed["data"][0]
    for unknown in ("nobody", "test", "test/model/x", "test%2Fmodel%00", " "):
        response = server.get(f"/v1/models/{unknown}")
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"


def wrong_type(server: Running, path: str) -> Any:
    return server.post(path, {"model": 5})


def unknown_field(server: Running, path: str) -> Any:
    return server.post(path, {**SMALL[path], "nobody_knows": 1})


def unknown_model(server: Running, path: str) -> Any:
    return server.post(path, {**SMALL[path], "model": "nobody"})


CANONICAL: dict[str, tuple[Callable[[Running, str], Any], int, str | None, str]] = {
    "no body": (lambda s, p: s.post(p, b""), 400, None, "invalid_json"),
    "half a body": (lambda s, p: s.post(p, b'{"model": '), 400, None, "invalid_json"),
    "not an object": (lambda s, p: s.post(p, b"[]"), 400, None, "invalid_json"),
    "wrong type": (wrong_type, 400, "model", "invalid_type"),
    "unknown field": (unknown_field, 400, "nobody_knows", "unknown_parameter"),
    "unknown model": (unknown_model, 404, "model", "model_not_found"),
    "wrong method": (lambda s, p: s.http.put(s.url + p), 405, None, "method_not_allowed"),
    "wrong address": (lambda s, p: s.post(p + "/x/y", {}), 404, None, "unknown_url"),
    "wrong kind": (lambda s, p: s.http.post(s.url + p, content="{}"), 415, None, "unsupported_media_type"),
    "encoded": (
        lambda s, p: s.post(p, b"{}", headers={"content-type": "application/json", "content-encoding": "br"}),
        415,
        None,
        "unsupported_media_type",
    ),
    "too large": (lambda s, p: s.post(p, b" " * (2**25 + 1)), 413, None, "request_too_large"),
}


ABOUT_MODELS = {"wrong type", "unknown model"}
NO_MODEL = {e.path for e in ENDPOINTS if e.body is not None and "model" not in e.body.model_fields}


@pytest.mark.parametrize(
    ("path", "case"),
    [(path, case) for path in JSON_ROUTES for case in CANONICAL if not (path in NO_MODEL and case in ABOUT_MODELS)],
)
def test_ac03_errors_are_the_same_on_every_route(server: Running, path: str, case: str) -> None:
    """AC-03: status, body, and that the body is exactly as described."""
    ask, status, param, code = CANONICAL[case]
    response = ask(server, path)
    assert response.status_code == status, response.text
    error = error_of(response)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    TypeAdapter(ErrorBody).validate_python(response.json(), strict=True)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/chat/completions", {}, openai.BadRequestError),
        ("/completions", {"model": "nobody", "prompt": "a"}, openai.NotFoundError),
        ("/nothing", {}, openai.NotFoundError),
        ("/models", {}, openai.APIStatusError),
    ],
)
def test_ac03_the_official_client_raises_the_right_class(
    server: Running, path: str, body: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    """AC-03."""
    with pytest.raises(error) as caught:
        server.client().post(path, body=body, cast_to=dict[str, Any])
    assert isinstance(caught.value.code, str)
    assert caught.value.type == "invalid_request_error"
