"""The log: one line a record, as text or JSON, written by a thread of its own.

A log that nobody reads (a full pipe, a stalled disk) must not stop the event loop, so lines wait in a queue of bounded
length; what does not fit is dropped and counted. A line holds nothing that could end it or move a terminal's cursor:
control characters are written as escapes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TextIO

from tokenmill.server.observe.record import RequestRecord

LogFormat = Literal["text", "json"]

MAX_QUEUED = 10_000
"""Lines."""
FLUSH_S = 1.0
"""At the end: how long the last lines may take."""

_requests = logging.getLogger("tokenmill.request")
_QUIET_ROUTES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds: told at level DEBUG where nothing is wrong."""
_SHORT = {
    "duration_s": "took", "prompt_tokens": "in", "completion_tokens": "out", "cached_tokens": "cached",
    "ttft_s": "first", "queue_s": "queue", "prefill_s": "prefill", "decode_s": "decode",
}  # fmt: skip


def log_request(record: RequestRecord, *, details: bool) -> None:
    """One line for a request that has ended; of a batch's fifty thousand lines, none unless at level DEBUG."""
    quiet = (record.route in _QUIET_ROUTES and record.status < 500) or record.background
    level = logging.DEBUG if quiet else logging.INFO
    if _requests.isEnabledFor(level):
        message = f"{record.method} {record.route} {record.status}"
        _requests.log(level, message, extra={"fields": record.as_fields(details=details)})


class Log(Protocol):
    """Tells of a request that has ended."""

    def __call__(self, record: RequestRecord, *, details: bool) -> None: ...


@contextlib.contextmanager
def logging_to(stream: TextIO, form: LogFormat, level: int = logging.INFO) -> Iterator[LogWriter]:
    """Within, what this package logs at ``level`` and above, and others at WARNING, goes to ``stream`` alone."""
    writer = LogWriter(stream, JsonLines() if form == "json" else TextLines())
    root, ours = logging.getLogger(), logging.getLogger("tokenmill")
    handlers, before = root.handlers, ours.level
    root.handlers = [writer]
    ours.setLevel(min(level, root.level))
    try:
        yield writer
    finally:
        root.handlers = handlers
        ours.setLevel(before)
        writer.close()


class LogWriter(logging.Handler):
    """Hands lines to a thread that writes them."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.num_dropped = 0
        self._stream = stream
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= MAX_QUEUED:
            self.num_dropped += 1
            return
        try:
            self._lines.put(self.format(record) + "\n")
        except Exception:  # noqa: BLE001  (a record that cannot be written must not fail what was logged)
            self.handleError(record)

    def close(self) -> None:
        """Write what is left, if that does not take too long."""
        self._lines.put(None)
        self._thread.join(FLUSH_S)
        super().close()

    def _write(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            if self.num_dropped > told and self._lines.empty():
                line += f"({self.num_dropped - told} lines of the log were dropped: it is not read fast enough)\n"
                told = self.num_dropped
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):  # the reader is gone, or the stream is closed
                return


class JsonLines(logging.Formatter):
    """A JSON object a line, in ASCII; a request's fields stand beside the others."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """For people: the moment, the level, what happened, and a request's fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        message = record.getMessage() if fields is None else _request_text(record.getMessage(), fields)
        line = f"{_moment(record)} {record.levelname:<8}{_escaped(message)}"
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line = "\n  | ".join([line, *map(_escaped, trace)])
        return line


def _request_text(message: str, fields: dict[str, Any]) -> str:
    shown = {name: value for name, value in fields.items() if name not in ("method", "route", "status")}
    return " ".join([message, *(f"{_SHORT.get(name, name)}={_value(value)}" for name, value in shown.items())])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value, separators=(",", ":"), default=str) if isinstance(value, dict) else str(value)


def _moment(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
