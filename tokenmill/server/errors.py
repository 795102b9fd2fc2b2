"""The one place that turns what went wrong into what the client sees.

Every error of every route leaves as OpenAI's body, ``{"error": {"message", "type", "param", "code"}}``,
with a status that says whom to blame: 4xx is the client's mistake and must not be retried, 5xx is ours.
``problem_of`` is total: whatever is raised has a status and a body, and what was not raised on purpose
shows none of its text.

::

    TokenmillError (core/errors.py)
    └── RequestError
        └── HttpError      a rule of HTTP was broken: carries its own status and headers
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, overload

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from tokenmill.core.errors import (
    Aborted,
    DeadlineExceeded,
    GrammarFailed,
    InvalidRequest,
    ModelNotFound,
    NeverFits,
    NotSupported,
    NumericalError,
    OutOfMemory,
    PoisonRequest,
    Preempted,
    RateLimited,
    RequestError,
    TokenmillError,
    Unavailable,
)
from tokenmill.server.protocol.base import ErrorBody

MAX_RETRY_AFTER_S = 120
"""OpenAI's client ignores a longer one altogether."""

MAX_MESSAGE_CHARS = 2000
"""Messages quote what clients wrote."""


class HttpError(RequestError):
    """The request broke a rule of HTTP or of this server's door."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.headers = dict(headers or {})


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it goes over the wire."""

    status: int
    body: ErrorBody
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        return self.body["error"]["code"] or "error"


_STATUS: tuple[tuple[type[TokenmillError], int, str], ...] = (
    (ModelNotFound, 404, "invalid_request_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    (NeverFits, 400, "invalid_request_error"),
    (NotSupported, 400, "invalid_request_error"),
    (RateLimited, 429, "rate_limit_error"),
    (NumericalError, 500, "server_error"),
    (GrammarFailed, 500, "server_error"),
    (PoisonRequest, 500, "server_error"),
    (OutOfMemory, 503, "server_error"),
    (DeadlineExceeded, 504, "server_error"),
    (Preempted, 503, "server_error"),
    (Aborted, 503, "server_error"),
    (Unavailable, 503, "server_error"),
)


def problem_of(error: BaseException, request_id: str) -> Problem:
    """Status, body and headers for anything raised while ``request_id`` was answered."""
    if isinstance(error, HttpError):
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        return _problem(error.status, error.message, kind, error.param, error.code, error.headers)
    if isinstance(error, HTTPException):
        return _routing_problem(error)
    if isinstance(error, TokenmillError):
        for cls, status, kind in _STATUS:
            if isinstance(error, cls):
                param = error.param if isinstance(error, RequestError) else None
                return _problem(status, error.message, kind, param, error.code, _headers(status, error))
    message = f"The server had an error while processing your request. Its log tells more under {request_id}."
    return _problem(500, message, "server_error", None, "server_error", {})


def _problem(
    status: int, message: str, kind: str, param: str | None, code: str | None, headers: dict[str, str]
) -> Problem:
    body: ErrorBody = {
        "error": {"message": _printable(message), "type": kind, "param": _printable(param), "code": code}
    }
    return Problem(status, body, headers)


@overload
def _printable(text: str) -> str: ...
@overload
def _printable(text: str | None) -> str | None: ...
def _printable(text: str | None) -> str | None:
    """What may be shown on a terminal and written to a log: a client's own words come back in messages, bounded."""
    if text is None or (text.isprintable() and len(text) <= MAX_MESSAGE_CHARS):
        return text
    shown = "".join(char if char.isprintable() else "\ufffd" for char in text[:MAX_MESSAGE_CHARS])
    return shown if len(text) <= MAX_MESSAGE_CHARS else shown + "…"


def _headers(status: int, error: TokenmillError) -> dict[str, str]:
    if isinstance(error, (NumericalError, GrammarFailed, PoisonRequest)):
        return {"x-should-retry": "false"}  # the same request would fail again
    if isinstance(error, RateLimited) and error.retry_after_s is None:
        return {"x-should-retry": "false"}  # more than the limit ever allows
    if status not in (429, 503):
        return {}
    wait_s = error.retry_after_s if isinstance(error, Unavailable | RateLimited) else None
    return {"retry-after": str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(wait_s or 1))))}


def _routing_problem(error: HTTPException) -> Problem:
    messages = {404: "There is nothing at this address.", 405: "This address does not take this method."}
    codes = {404: "unknown_url", 405: "method_not_allowed"}
    return _problem(
        error.status_code,
        messages.get(error.status_code, error.detail),
        "invalid_request_error",
        None,
        codes.get(error.status_code),
        dict(error.headers or {}),
    )


def from_validation(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    """The first thing that is wrong with a body, named by its path: ``messages[3].content[0].type``."""
    first = error.errors(include_url=False)[0]
    param = _path(first)
    kind = first["type"]
    if kind == "missing":
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return InvalidRequest(
            f"Unknown parameter: '{param}'.{_hint(first, model)}", param=param, code="unknown_parameter"
        )
    if kind == "model_type" and not param:
        return InvalidRequest("The request body must be a JSON object.", code="invalid_json")
    if kind.endswith("_type"):
        wanted = first["msg"].removeprefix("Input should be ")
        message = f"Invalid type for '{param}': expected {wanted}, but got {_kind_of(first['input'])} instead."
        return InvalidRequest(message, param=param, code="invalid_type")
    what = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"Invalid '{param}': {what}.", param=param)


def _path(details: Mapping[str, Any]) -> str:
    """Join a location, leaving out the tags of unions (they begin with ``~``)."""
    text = ""
    for part in details["loc"]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("~"):
            name = part[:64]
            text += f".{name}" if text else name
    return text


def _hint(details: Mapping[str, Any], model: type[BaseModel]) -> str:
    near = difflib.get_close_matches(str(details["loc"][-1])[:64], model.model_fields, n=1)
    return f" Did you mean '{near[0]}'?" if near and len(details["loc"]) == 1 else ""


def _kind_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    names = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
