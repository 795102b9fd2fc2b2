"""The lines of a batch's input: checked all before the first is run, then read one by one.

An input may be 200 MB, so it is never in memory: a line is, and of every ``custom_id`` a digest of 16 bytes. Parsing
goes on in a thread that stops for a moment every few pieces, so that tokens of others do not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tokenmill.core.errors import InvalidRequest, TokenmillError
from tokenmill.server import jsonio
from tokenmill.server.protocol.batches import BatchError

MAX_LINES = 50_000
MAX_INPUT_BYTES = 200 * 10**6
MAX_CUSTOM_ID = 512
MAX_ERRORS = 100
"""So many are told; what follows is not looked at."""
READ_BYTES = 2**17
BREATH_BYTES = 2**16
BREATH_S = 0.001


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]

    @property
    def key(self) -> bytes:
        return digest(self.custom_id)

    def encoded(self) -> bytes:
        """The body as a client would have sent it: what no field can hold is left for the field to refuse."""
        return json.dumps(self.body).encode()


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of all lines found."""

    num_lines: int
    model: str | None
    errors: list[BatchError]


class Complaint(Exception):
    """One line is wrong."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Stopped(Exception):
    """Nobody waits for the result any more."""


def digest(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


class LineReader:
    """The lines of an input file in order; blank ones are left out. Blocks: for a thread."""

    def __init__(self, path: Path, max_line_bytes: int) -> None:
        self._file: IO[bytes] = open(path, "rb", buffering=READ_BYTES)  # noqa: SIM115  (closed by ``close``)
        self._max_bytes = max_line_bytes
        self.number = 0
        """Of the line that was read last, counted from 1."""

    def next(self) -> bytes | None:
        """The next line; None at the end.

        Raises:
            Complaint: it is longer than a request may be; it has been passed over.
        """
        while line := self._file.readline(self._max_bytes + 1):
            self.number += 1
            if len(line) > self._max_bytes:
                while line and not line.endswith(b"\n"):
                    line = self._file.readline(self._max_bytes)
                raise Complaint("line_too_long", f"The line is longer than {self._max_bytes} bytes.")
            if stripped := line.strip():
                return stripped
        return None

    def close(self) -> None:
        self._file.close()


def parse(text: bytes, endpoint: str) -> Line:
    """One line, checked but for its body's fields: those are the endpoint's.

    Raises:
        Complaint: it is not a request to ``endpoint`` that a batch can hold.
    """
    try:
        value = jsonio.loads(text)
    except InvalidRequest as error:
        raise Complaint("invalid_json_line", error.message.replace("The request body", "The line")) from None
    if not isinstance(value, dict):
        raise Complaint("invalid_json_line", "The line must be a JSON object.")
    custom_id, method, url, body = (value.get(name) for name in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        message = f"'custom_id' must be a string of 1 to {MAX_CUSTOM_ID} characters."
        raise Complaint("invalid_custom_id", message, "custom_id")
    if method != "POST":
        raise Complaint("invalid_method", "'method' must be \"POST\".", "method")
    if url != endpoint:
        raise Complaint("mismatched_url", f"'url' must be the batch's endpoint, {endpoint}.", "url")
    if not isinstance(body, dict):
        raise Complaint("invalid_body", "'body' must be an object: the request's own.", "body")
    for name, what in (("stream", "streamed"), ("background", "fetched later")):
        if body.get(name):
            message = f"Answers of a batch are not {what}; leave '{name}' out."
            raise Complaint("not_in_a_batch", message, f"body.{name}")
    unknown = next((name for name in value if name not in ("custom_id", "method", "url", "body")), None)
    if unknown is not None:
        raise Complaint("unknown_parameter", f"Unknown parameter: '{unknown[:64]}'.", unknown[:64])
    return Line(custom_id, body)


def check(
    reader: LineReader, endpoint: str, check_model: Callable[[Any], None], stopped: Callable[[], bool]
) -> Checked:
    """Look at every line. ``check_model`` raises for a model that is not served.

    Raises:
        Stopped: ``stopped`` said so.
    """
    seen: set[bytes] = set()
    errors: list[BatchError] = []
    model: str | None = None
    for number, text in _each(reader, stopped):
        if len(errors) >= MAX_ERRORS:
            break
        try:
            if isinstance(text, Complaint):
                raise text
            line = parse(text, endpoint)
            if line.key in seen:
                raise Complaint("duplicate_custom_id", "An earlier line has the same 'custom_id'.", "custom_id")
            seen.add(line.key)
            _check_model(line, model, check_model)
            model = line.body["model"]
            if len(seen) > MAX_LINES:
                errors.append(_error("too_many_lines", f"A batch may hold at most {MAX_LINES} lines.", number, None))
                break
        except Complaint as error:
            errors.append(_error(error.code, str(error), number, error.param))
    if not seen and not errors:
        errors.append(_error("empty_file", "The input file holds no line.", None, None))
    return Checked(len(seen), model, errors)


def _each(reader: LineReader, stopped: Callable[[], bool]) -> Iterator[tuple[int, bytes | Complaint]]:
    """Each line with its number, or what is wrong with it, with a breath now and then."""
    num_bytes = 0
    while True:
        text: bytes | Complaint | None
        try:
            text = reader.next()
        except Complaint as error:
            text = error
        if text is None:
            return
        yield reader.number, text
        num_bytes += len(text) if isinstance(text, bytes) else BREATH_BYTES
        if num_bytes >= BREATH_BYTES:
            num_bytes = 0
            time.sleep(BREATH_S)
            if stopped():
                raise Stopped


def _check_model(line: Line, first: str | None, check_model: Callable[[Any], None]) -> None:
    model = line.body.get("model")
    if not isinstance(model, str):
        raise Complaint("missing_required_parameter", "'body.model' must name the model.", "body.model")
    if model == first:
        return
    if first is not None:
        raise Complaint("mismatched_model", "All lines of a batch must name the same model.", "body.model")
    try:
        check_model(model)
    except TokenmillError as error:
        raise Complaint(error.code, error.message, "body.model") from None


def _error(code: str, message: str, line: int | None, param: str | None) -> BatchError:
    return {"code": code, "line": line, "message": message, "param": param}
