"""The mixed load: what good clients do, drawn at random, each answer checked for what was asked for.

Every scenario is one function of a ``Session``; ``SCENARIOS`` says how often each is drawn. All of them make up names
as they go (users, salts, schemas), as many as there are requests: whatever a server keeps by name would show (SK-04).
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from tokenmill.bench.soak.session import Session
from tokenmill.bench.soak.wire import Answer

Scenario = Callable[[Session], Awaitable[None]]


async def chat(session: Session) -> None:
    """Whole or streamed, with what people set."""
    rng, stream = session.rng, session.rng.random() < 0.6
    turns = [{"role": "user", "content": session.words(2, 60)}]
    if rng.random() < 0.4:
        turns = [{"role": "system", "content": "Be kind."}, *turns, {"role": "assistant", "content": "Yes."}, *turns]
    body = _common(session) | {"messages": turns, "max_tokens": rng.randint(1, 60)}
    if rng.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": rng.randint(0, 5)}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    kind = "chat, streamed" if stream else "chat"
    answer = await session.ask(kind, "POST", "/v1/chat/completions", body)
    if answer is not None:
        _check_choices(session, kind, answer, body.get("n", 1), body["max_tokens"], stream=stream)


async def completion(session: Session) -> None:
    """One prompt or several, texts or tokens."""
    rng, stream = session.rng, session.rng.random() < 0.5
    prompts: Any = session.words(1, 80)
    if rng.random() < 0.3:
        prompts = [session.words(1, 20) for _ in range(rng.randint(1, 4))]
    body = _common(session) | {"prompt": prompts, "max_tokens": rng.randint(1, 60)}
    if rng.random() < 0.2:
        body |= {"echo": True, "logprobs": rng.randint(0, 5)}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    kind = "completion, streamed" if stream else "completion"
    answer = await session.ask(kind, "POST", "/v1/completions", body)
    if answer is not None:
        count = (len(prompts) if isinstance(prompts, list) else 1) * body.get("n", 1)
        _check_choices(session, kind, answer, count, body["max_tokens"], stream=stream)


async def structured(session: Session) -> None:
    """A schema that nobody has sent before; what ends by itself must obey it."""
    name, words = session.name("field"), [session.words(1, 1) for _ in range(3)]
    schema = {
        "type": "object",
        "properties": {name: {"enum": words}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": [name, "n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    body = _common(session, choices=False) | {"messages": _ask(session), "max_tokens": 80, "response_format": form}
    answer = await session.ask("structured", "POST", "/v1/chat/completions", body)
    if answer is None:
        return
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        found = json.loads(choice["message"]["content"])
        if set(found) != {name, "n"} or found[name] not in words or found["n"] not in range(10):
            session.wrong("structured", f"{found} does not obey {schema}")


async def tools(session: Session) -> None:
    """A call that must be made, with arguments that must obey."""
    stream = session.rng.random() < 0.5
    tool = {
        "type": "function",
        "function": {
            "name": "go",
            "parameters": {
                "type": "object",
                "properties": {"to": {"enum": ["red", "blue"]}},
                "required": ["to"],
                "additionalProperties": False,
            },
        },
    }
    body = _common(session, choices=False) | {"messages": _ask(session), "max_tokens": 60, "tools": [tool]}
    body |= {"tool_choice": "required", "parallel_tool_calls": False, "stream": stream}
    answer = await session.ask("tools", "POST", "/v1/chat/completions", body)
    if answer is None:
        return
    if stream:
        choices = [c for event in answer.events if event != "[DONE]" for c in event["choices"]]
        deltas = [call for c in choices for call in c["delta"].get("tool_calls") or ()]
        arguments = "".join(delta["function"].get("arguments") or "" for delta in deltas)
        finish = next((c["finish_reason"] for c in choices if c["finish_reason"]), None)
    else:
        choice = answer.json()["choices"][0]
        finish = choice["finish_reason"]
        arguments = "".join(call["function"]["arguments"] for call in choice["message"].get("tool_calls") or ())
    if finish == "tool_calls" and json.loads(arguments).get("to") not in ("red", "blue"):
        session.wrong("tools", f"arguments {arguments!r}")
    elif finish not in ("tool_calls", "length"):
        session.wrong("tools", f"finish_reason {finish!r} where a call is required")


async def responses(session: Session) -> None:
    """A conversation by ids: begun, continued, streamed, read again, and now and then deleted."""
    body = _sampling(session) | {"input": session.words(1, 30), "max_output_tokens": session.rng.randint(1, 40)}
    answer = await session.ask("response", "POST", "/v1/responses", body)
    if answer is None:
        return
    first = answer.json()["id"]
    streamed = body | {"input": "And then?", "previous_response_id": first, "stream": True}
    answer = await session.ask("response, streamed", "POST", "/v1/responses", streamed)
    if answer is not None:
        _check_response_events(session, answer)
    read = await session.ask("response, read", "GET", f"/v1/responses/{first}")
    if read is not None and read.json()["id"] != first:
        session.wrong("response, read", f"{first} gives {read.json()['id']}")
    if session.rng.random() < 0.5:
        await session.ask("response, deleted", "DELETE", f"/v1/responses/{first}")


async def embeddings(session: Session) -> None:
    """Vectors of length 1, as many as texts, in either encoding."""
    texts = [session.words(1, 40) for _ in range(session.rng.randint(1, 8))]
    encoding = session.rng.choice(("float", "base64"))
    body = {"model": session.model, "input": texts, "encoding_format": encoding, "user": session.name("user")}
    answer = await session.ask("embeddings", "POST", "/v1/embeddings", body)
    if answer is None:
        return
    rows = [row["embedding"] for row in answer.json()["data"]]
    vectors = [_floats(row) if encoding == "base64" else row for row in rows]
    norms = [math.sqrt(sum(x * x for x in vector)) for vector in vectors]
    if len(vectors) != len(texts) or any(not 0.99 < norm < 1.01 for norm in norms):
        session.wrong("embeddings", f"{len(vectors)} vectors of {len(texts)} texts, of lengths {norms}")


async def tokens(session: Session) -> None:
    """There and back."""
    text = session.words(1, 200)
    answer = await session.ask("tokenize", "POST", "/tokenize", {"prompt": text, "add_special_tokens": False})
    if answer is None:
        return
    back = await session.ask("detokenize", "POST", "/detokenize", {"tokens": answer.json()["tokens"]})
    if back is not None and back.json()["prompt"].strip() != text:
        session.wrong("detokenize", f"{text!r} came back as {back.json()['prompt']!r}")


async def looks(session: Session) -> None:
    """What dashboards and clients ask besides."""
    path = session.rng.choice(("/v1/models", f"/v1/models/{session.model}", "/openapi.json", "/", "/v1/files"))
    await session.ask("looks", "GET", path)


SCENARIOS: tuple[tuple[Scenario, int], ...] = (
    (chat, 8),
    (completion, 6),
    (structured, 2),
    (tools, 2),
    (responses, 2),
    (embeddings, 3),
    (tokens, 4),
    (looks, 3),
)
"""With how often each comes."""


def _sampling(session: Session) -> dict[str, Any]:
    rng = session.rng
    body: dict[str, Any] = {"model": session.model, "user": session.name("user")}
    body["temperature"] = rng.choice((0, 0.7, 1))
    if rng.random() < 0.3:
        body |= {"top_p": 0.9}
    return body


def _common(session: Session, *, choices: bool = True) -> dict[str, Any]:
    """Of chat and completions: sampling, and what makes requests differ in the engine."""
    rng, body = session.rng, _sampling(session)
    body["seed"] = rng.randrange(2**31)
    if rng.random() < 0.2:
        body["cache_salt"] = session.name("salt")
    if rng.random() < 0.2:
        body["metadata"] = {session.name("key"): session.name("value")}
    if rng.random() < 0.15:
        body |= {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
    if rng.random() < 0.15:
        body["stop"] = [session.words(2, 2), "."]
    if choices and rng.random() < 0.15:
        body["n"] = rng.randint(2, 3)
    return body


def _ask(session: Session) -> list[dict[str, str]]:
    return [{"role": "user", "content": session.words(2, 30)}]


def _check_choices(session: Session, kind: str, answer: Answer, count: int, max_tokens: int, *, stream: bool) -> None:
    """Every choice ended once, in a way that exists; the tokens are within what was asked for."""
    if stream:
        if answer.events[-1:] != ["[DONE]"]:
            return session.wrong(kind, f"a stream that ends with {str(answer.events[-1:])[:200]}")
        events = answer.events[:-1]
    else:
        events = [answer.json()]
    ends = [(c["index"], c["finish_reason"]) for event in events for c in event["choices"] if c["finish_reason"]]
    if sorted(index for index, _ in ends) != list(range(count)) or any(e not in ("stop", "length") for _, e in ends):
        return session.wrong(kind, f"{count} choices ended as {ends}")
    used = events[-1]["usage"]["completion_tokens"]
    if not 0 < used <= count * max_tokens:
        session.wrong(kind, f"{used} tokens in {count} choices of at most {max_tokens}")
    return None


def _check_response_events(session: Session, answer: Answer) -> None:
    numbers = [event["sequence_number"] for event in answer.events]
    if numbers != list(range(len(numbers))):
        return session.wrong("response, streamed", f"sequence numbers {numbers}")
    last = answer.events[-1]
    if last["type"] not in ("response.completed", "response.incomplete"):
        return session.wrong("response, streamed", f"ends with {last['type']}")
    said = "".join(e["delta"] for e in answer.events if e["type"] == "response.output_text.delta")
    held = "".join(
        part["text"]
        for item in last["response"]["output"]
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    )
    if said != held:
        session.wrong("response, streamed", f"deltas {said!r} are not the whole {held!r}")
    return None


def _floats(text: str) -> tuple[float, ...]:
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)
