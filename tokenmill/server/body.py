"""The one function that turns a request's body into a checked model, for every route that takes one.

Rules in the order in which they are asked: the content type, the content encoding (nothing is ever
decompressed), the announced length, the length and the time while reading, how many values there are, the JSON, the
fields. While it is read and until the engine has it, a body counts against what all clients may hold (``held.py``).

A body that announces its length is kept in memory, since it will be needed whole. One that does not may be endless:
beyond half a megabyte it goes to a file without a name, so that many such cost no memory before they are refused.
"""

from __future__ import annotations

import asyncio
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from tokenmill.core.errors import InvalidRequest
from tokenmill.server import jsonio
from tokenmill.server.context import Context
from tokenmill.server.errors import ClientGone, HttpError, from_validation
from tokenmill.server.held import Hold

INLINE_BYTES = 65536
"""Bodies up to this size are parsed on the event loop; larger ones would hold up everybody's tokens."""

SPOOL_BYTES = 2**19
"""Bodies of unknown length are kept in memory up to this size."""

MAX_VALUES = 4_000_000
"""In one body, counted by commas and brackets: ``[[],[],…`` takes twenty times its bytes once it is parsed."""

M = TypeVar("M", bound=BaseModel)


async def read_model(request: Request, model: type[M], context: Context, hold: Hold) -> M:
    """Read, parse and check; ``hold`` takes the body's bytes.

    Raises:
        HttpError: 408, 413 or 415.
        Unavailable: all clients together hold too much.
        InvalidRequest: not JSON, or a field is wrong; ``param`` is its path.
        ClientGone: the client left before the body was complete.
    """
    settings = context.settings
    _check_headers(request, settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            body = await _read(request, settings.max_body_bytes, hold)
    except TimeoutError:
        raise HttpError(
            408, f"The body was not complete after {settings.body_timeout_s:g} s.", code="request_timeout"
        ) from None
    return await context.off_loop(len(body), partial(_parse, body, model), inline_bytes=INLINE_BYTES)


def _parse(body: bytes, model: type[M]) -> M:
    if sum(map(body.count, b",[{")) > MAX_VALUES:
        raise HttpError(413, f"The body holds more than {MAX_VALUES} values.", code="request_too_large")
    value = jsonio.loads(body)
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object.", code="invalid_json")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise from_validation(error, model) from None


def _check_headers(request: Request, max_bytes: int) -> None:
    kind, _, parameter = request.headers.get("content-type", "").partition(";")
    charset = parameter.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise HttpError(415, "The content type must be application/json.", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "Compressed bodies are not taken.", code="unsupported_media_type")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def _read(request: Request, max_bytes: int, hold: Hold) -> bytes:
    announced = request.headers.get("content-length")
    hold.check(int(announced or 0))
    kept_bytes = SPOOL_BYTES if announced is None else max_bytes
    num_bytes, more = 0, True
    with SpooledTemporaryFile(max_size=kept_bytes) as body:
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            more = message.get("more_body", False)
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            hold.take(len(part))
            body.write(part)
        body.seek(0)
        return body.read()


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")
