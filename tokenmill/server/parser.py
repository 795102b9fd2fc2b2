"""HTTP/1.1 read strictly: what two readers of one connection could understand differently is refused.

A proxy in front and this server must agree where a request ends, or a client can hide a second request in the first
(request smuggling). ``h11`` is the parser, chosen by name and not by what happens to be installed: it is small, plain
Python, refuses most of what is ambiguous, and its state can be asked. What it still tolerates is refused here before
it sees it:

- a line that ends in a bare LF or CR, a line that continues the one before (obs-fold), control characters;
- ``Content-Length`` twice or in any other spelling than digits, together with ``Transfer-Encoding``, or a
  transfer coding that is not exactly one ``chunked``;
- a ``Host`` given twice, or one that is no host;
- trailer fields, and bodies in chunks of a few bytes, which cost far more to take apart than to send.

RFC 9112 sections 2.2, 5.2, 6.1 and 6.3, RFC 9110 section 7.2.
"""

from __future__ import annotations

import re
from typing import Any

import h11

MAX_HEAD_BYTES = 32 * 1024
MAX_REQUEST_LINE_BYTES = 8 * 1024
MAX_FIELDS = 100
FREE_CHUNKS = 1024
MEAN_CHUNK_BYTES = 64
"""After the first ``FREE_CHUNKS`` chunks of a body, they must hold this much each on average."""

_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{0,5})?")


class Parser(h11.Connection):
    """One connection's server side. ``refusal`` is why ``next_event`` raised; ``num_sent`` counts bytes handed out."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.refusal: h11.RemoteProtocolError | None = None
        self.num_sent = 0
        self._body: _ChunkedBody | None = None

    def receive_data(self, data: bytes) -> None:
        super().receive_data(data)
        if self._body is not None:
            self._body.unread += data

    def next_event(self) -> Any:
        """As h11's; raises ``RemoteProtocolError``, with the status as ``error_status_hint``."""
        try:
            is_chunked = self.their_state is h11.IDLE and _check_head(self.trailing_data[0])
            event = super().next_event()
            if is_chunked and isinstance(event, h11.Request):
                self._body = _ChunkedBody(bytearray(self.trailing_data[0]))
            elif self._body is not None:
                self._follow(self._body, event)
        except h11.RemoteProtocolError as error:
            self.refusal = error if self._body is None else _refused(f"the body's chunks: {error}")
            raise
        return event

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Behind ``send``: every byte that leaves goes through here."""
        parts = super().send_with_data_passthrough(event)
        self.num_sent += sum(map(len, parts or ()))
        return parts

    def _follow(self, body: _ChunkedBody, event: Any) -> None:
        if isinstance(event, h11.Data):
            body.count(event)
        elif isinstance(event, h11.EndOfMessage):
            body.check_end(event, len(self.trailing_data[0]))
            self._body = None
        elif event is h11.NEED_DATA:
            body.unread = bytearray(self.trailing_data[0])


class _ChunkedBody:
    """A body in chunks, watched while it is taken apart. ``unread``: what h11 had not consumed, and what came since."""

    def __init__(self, unread: bytearray) -> None:
        self.unread = unread
        self._num_chunks = 0
        self._num_bytes = 0

    def count(self, data: h11.Data) -> None:
        self._num_chunks += data.chunk_start
        self._num_bytes += len(data.data)
        if self._num_chunks > FREE_CHUNKS and self._num_bytes < self._num_chunks * MEAN_CHUNK_BYTES:
            raise _refused("the body comes in too many small chunks")

    def check_end(self, event: h11.EndOfMessage, num_left: int) -> None:
        consumed = self.unread[: len(self.unread) - num_left]
        if event.headers or not (consumed == b"\r\n" or consumed.endswith(b"\r\n\r\n")):
            raise _refused("trailer fields are not taken, and the last chunk ends in an empty line")


def _check_head(data: bytes) -> bool:
    """Check the head, or what is there of it; whether a body in chunks follows.

    Raises:
        RemoteProtocolError: it is too large, or could be read in two ways.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    line_bytes = head.find(b"\r\n") if b"\r\n" in head else len(head)
    if line_bytes > MAX_REQUEST_LINE_BYTES:
        raise _refused(f"the request line is longer than {MAX_REQUEST_LINE_BYTES} bytes", 414)
    if len(head) > MAX_HEAD_BYTES:
        raise _refused(f"the header is larger than {MAX_HEAD_BYTES} bytes", 431)
    if _FORBIDDEN.search(head):
        raise _refused("the header holds a control character, a bare line feed or a folded line")
    return end >= 0 and _check_fields(*head.split(b"\r\n"))


def _check_fields(request_line: bytes, *fields: bytes) -> bool:
    if len(fields) > MAX_FIELDS:
        raise _refused(f"there are more than {MAX_FIELDS} header fields", 431)
    found: dict[bytes, list[bytes]] = {b"content-length": [], b"transfer-encoding": [], b"host": []}
    for field in fields:
        name, _, value = field.partition(b":")
        if (key := name.lower()) in found:
            found[key].append(value.strip(b" \t"))
    lengths, codings, hosts = found.values()
    version = request_line[-8:]
    if version.startswith(b"HTTP/") and version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise _refused("the version is neither HTTP/1.1 nor HTTP/1.0", 505)
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise _refused("Content-Length must be one number")
    if codings and (lengths or len(codings) > 1 or codings[0].lower() != b"chunked" or version != b"HTTP/1.1"):
        raise _refused("Transfer-Encoding must be 'chunked' alone, without Content-Length, in HTTP/1.1")
    if len(hosts) > 1 or not all(map(HOST.fullmatch, hosts)):
        raise _refused("Host must be one host name or address, with or without a port")
    return bool(codings)


def _refused(what: str, status: int = 400) -> h11.RemoteProtocolError:
    return h11.RemoteProtocolError(what, error_status_hint=status)
