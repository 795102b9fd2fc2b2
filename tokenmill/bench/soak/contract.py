"""What any answer must look like, whoever asked for what: the error contract, and which refusals are in order.

A server under chaos refuses. That is in order if it says so as the contract has it: OpenAI's body, a code that stands
for "not now" with ``Retry-After``, an ``x-request-id``. It is a breach if an answer is cut, if it is a 5xx of any
other code, or if it has another shape. The requests of the mixed load are good ones, so a 4xx is a breach as well.
"""

from __future__ import annotations

from typing import Any

from tokenmill.bench.soak.record import Record
from tokenmill.bench.soak.wire import Answer

MAX_RETRY_AFTER_S = 120
REFUSALS = {
    429: {"rate_limit_exceeded", "too_many_batches"},
    503: {"server_overloaded", "too_many_connections", "grammar_queue_full"},
    504: {"deadline_exceeded"},
}
"""What may be refused at any time, by status."""
RESTARTING = {"not_ready", "engine_failed", "unavailable"}
"""503 while an engine is replaced, and no other time."""


def problem_with(answer: Answer) -> str | None:
    """What is wrong with the shape of an answer whose status is not 200."""
    try:
        body = answer.json()
    except ValueError:
        return f"the body of {answer.status} is not JSON: {answer.body[:200]!r}"
    if (wrong := problem_with_error(body)) is not None:
        return wrong
    if not answer.headers.get("x-request-id"):
        return f"{answer.status} without x-request-id"
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return f"{answer.status} with content type {answer.headers.get('content-type')!r}"
    if answer.status in (429, 503) and answer.headers.get("x-should-retry") != "false":
        wait = answer.headers.get("retry-after", "")
        if not wait.isdigit() or not 1 <= int(wait) <= MAX_RETRY_AFTER_S:
            return f"{answer.status} with Retry-After {wait!r}"
    return None


def problem_with_error(body: Any) -> str | None:
    """What is wrong with OpenAI's error object."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return f"not an error body: {str(body)[:200]}"
    if not (isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)):
        return f"an error without a message or type: {str(error)[:200]}"
    if not all(error[name] is None or isinstance(error[name], str) for name in ("param", "code")):
        return f"an error whose param or code is no text: {str(error)[:200]}"
    return None


def refusal(record: Record, kind: str, answer: Answer, *, restarting: bool) -> str:
    """Judge an answer that is not 200 to a request that deserved one; the outcome that is counted."""
    if (wrong := problem_with(answer)) is not None:
        record.breach("errors", f"{kind}: {wrong}")
        return "malformed error"
    error = answer.json()["error"]
    return judge_code(record, kind, answer.status, error, restarting=restarting)


def judge_code(record: Record, kind: str, status: int, error: dict[str, Any], *, restarting: bool) -> str:
    """Whether this refusal is in order now; the outcome that is counted."""
    code = str(error["code"])
    allowed = REFUSALS.get(status, set()) | (RESTARTING if restarting and status == 503 else set())
    if code not in allowed:
        record.breach("errors", f"{kind}: {status} {code}: {error['message']}")
    return f"{status} {code}"


def error_in_stream(answer: Answer) -> dict[str, Any] | None:
    """The error frame of a stream, if it has one."""
    for event in answer.events:
        if isinstance(event, dict) and isinstance(event.get("error"), dict):
            error: dict[str, Any] = event["error"]
            return error
    return None
