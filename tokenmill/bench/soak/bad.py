"""Requests that must be refused, each with the one status that it deserves. None may cost anybody else anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenmill.bench.soak import contract
from tokenmill.bench.soak.session import Session
from tokenmill.bench.soak.wire import Answer, Cut, ask

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Bad:
    """What to send, and what must come back."""

    name: str
    status: int
    send: Callable[[Session], bytes]


async def refuse(session: Session, bad: Bad) -> None:
    """Send it; anything but its own refusal (or that of a server that takes nothing now) is a breach."""
    began_s = session.record.now_s
    try:
        answer = await ask(session.address, bad.send(session), timeout_s=TIMEOUT_S)
    except (Cut, TimeoutError) as error:
        session.record.count("bad", "lost")
        session.record.breach("errors", f"bad: {bad.name}: {type(error).__name__} {error}")
        return
    if answer.status == bad.status:
        session.record.count("bad", f"{answer.status}, as it must be")
        _check_body(session, bad, answer)
    elif answer.status in (429, 503):
        restarting = session.weather.excuses(began_s)
        session.record.count("bad", contract.refusal(session.record, f"bad: {bad.name}", answer, restarting=restarting))
    else:
        session.record.count("bad", "another answer")
        session.record.breach("errors", f"bad: {bad.name}: {answer.status} {answer.body[:200]!r}, not {bad.status}")


def _check_body(session: Session, bad: Bad, answer: Answer) -> None:
    if (wrong := contract.problem_with(answer)) is not None:
        session.record.breach("errors", f"bad: {bad.name}: {wrong}")


def _field(name: str, path: str, status: int = 400, **fields: Any) -> Bad:
    """A good body with some fields that are not."""

    def send(session: Session) -> bytes:
        good: dict[str, Any] = {"model": session.model, "max_tokens": 4}
        if path == CHAT:
            good["messages"] = [{"role": "user", "content": "Hello"}]
        elif path == COMPLETIONS:
            good["prompt"] = "Once"
        else:
            good = {"model": session.model, "input": "Hello"}
        return _post(session, path, json.dumps(good | fields).encode())

    return Bad(name, status, send)


def _raw(name: str, path: str, body: bytes, status: int = 400, kind: str = "application/json") -> Bad:
    return Bad(name, status, lambda session: _post(session, path, body, kind))


def _post(session: Session, path: str, body: bytes, kind: str = "application/json") -> bytes:
    return session.address.request("POST", path, body, key=session.key, kind=kind, headers={"Connection": "close"})


def _get(name: str, path: Callable[[Session], str], status: int, *, key: bool = True, method: str = "GET") -> Bad:
    def send(session: Session) -> bytes:
        headers = {"Connection": "close", f"X-{session.name('Header')}": session.name("value")}
        return session.address.request(method, path(session), key=session.key if key else "", headers=headers)

    return Bad(name, status, send)


def _model_that_is_not(session: Session) -> bytes:
    body = {"model": session.name("model"), "prompt": "Once", "max_tokens": 1}
    return _post(session, COMPLETIONS, json.dumps(body).encode())


def _schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}


def _two_lengths(session: Session) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"0\r\n\r\n"


CORPUS: tuple[Bad, ...] = (
    _raw("not JSON", CHAT, b"{'model': 1}"),
    _raw("half of a body's JSON", CHAT, b'{"model": "story", "messages": [{"role": "us'),
    _raw("not UTF-8", CHAT, b'{"model": "\xff\xfe"}'),
    _raw("a list", CHAT, b"[1, 2, 3]"),
    _raw("deep", CHAT, b"[" * 20_000 + b"]" * 20_000),
    _raw("a key twice", COMPLETIONS, b'{"model": "story", "model": "story", "prompt": "x"}'),
    _raw("a form where JSON belongs", CHAT, b"model=story", 415, "application/x-www-form-urlencoded"),
    _field("no messages", CHAT, messages=[]),
    _field("a role that is not", CHAT, messages=[{"role": "king", "content": "x"}]),
    _field("content of a number", CHAT, messages=[{"role": "user", "content": 3}]),
    _field("an unknown field", CHAT, temprature=1),
    _field("hot", CHAT, temperature=9),
    _field("a number as text", CHAT, max_tokens="3"),
    _field("n of none", CHAT, n=0),
    _field("n of very many", CHAT, n=10**6),
    _field("top_p of a list", COMPLETIONS, top_p=[1]),
    _field("infinite", COMPLETIONS, seed=10**40),
    _field("longer than the context", COMPLETIONS, prompt="fox " * 20_000),
    _field("tokens that are not", COMPLETIONS, prompt=[10**9]),
    _field("a bias of the moon", COMPLETIONS, logit_bias={"moon": 1}),
    _field("a schema that is none", CHAT, response_format=_schema({"type": "banana"})),
    _field("a schema of nothing", CHAT, response_format=_schema(False)),
    _field("a pattern that is none", CHAT, structured_outputs={"regex": "(["}),
    _field("a grammar that is none", CHAT, structured_outputs={"grammar": "start: ("}),
    _field("a tool without a name", CHAT, tools=[{"type": "function", "function": {}}]),
    _field("a choice of no tool", CHAT, tool_choice="required"),
    _field("what is not built", RESPONSES, conversation="c"),
    _field("a response that is not", RESPONSES, 404, previous_response_id="resp_0"),
    Bad("a model that is not", 404, _model_that_is_not),
    Bad("two lengths", 400, _two_lengths),
    Bad("no HTTP", 400, lambda session: b"HELLO THERE\r\n\r\n"),
    _get("an address that is not", lambda session: f"/{session.name('page')}?{session.name('q')}=1", 404),
    _get("a method that is not", lambda session: CHAT, 405, method="DELETE"),
    _get("no key", lambda session: "/v1/models", 401, key=False),
    _get("a file that is not", lambda session: "/v1/files/file-" + "0" * 32, 404),
    _get("a batch that is not", lambda session: "/v1/batches/batch_" + "0" * 32, 404),
    _get("a path upwards", lambda session: "/v1/files/..%2f..%2fetc%2fpasswd", 404),
    _get("a long address", lambda session: "/" + "a" * 9000, 414),
)
