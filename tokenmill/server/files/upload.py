"""Reading an upload: a multipart form as it arrives, its file straight to the disk.

Nothing is kept in memory but the small fields and a piece on its way out. Every measure that a client chooses has
a bound, and is looked at before anything is stored for it: the announced length, the parts, a part's headers, a
field's length, the file's own bytes, the tenant's share, and the time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import NoReturn

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from tokenmill.core.errors import InvalidRequest
from tokenmill.server.context import Context, tenant_of
from tokenmill.server.errors import ClientGone, HttpError, from_validation
from tokenmill.server.files.records import FileRecord, Files, Room, file_too_large, new_file_id
from tokenmill.server.protocol.files import FileForm
from tokenmill.server.store import Draft, unix_time

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of malformed forms: anybody can send one

MAX_PARTS = 8
"""A form has at most four fields."""
MAX_FIELD_BYTES = 1024
MAX_HEADER_BYTES = 8192
MAX_BOUNDARY_BYTES = 70
FORM_BYTES = 2**16
"""What a form may take beside its file."""
PIECE_BYTES = 2**18
"""So much of a file is gathered in memory before it is written."""
HELD_BYTES = 2 * PIECE_BYTES
"""What an upload counts as among the bodies in memory: a piece being gathered, and one being written."""
MIN_BYTES_PER_S = 2**16
"""A slow client has ``body_timeout_s``, and longer as long as it sends this much."""
BATCH_EXPIRY_S = 30 * 86400
"""Files for batches are deleted after this long unless told otherwise, as by OpenAI."""

FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}


async def receive_file(context: Context, files: Files, request: Request) -> FileRecord:
    """Store the file of a multipart form.

    Raises:
        HttpError: 403, 408, 413, 415 or 507; nothing is left of it.
        Unavailable: too many bodies are in memory already.
        InvalidRequest: the form is malformed, or a field of it is wrong.
        ClientGone: the client left before the form was complete.
    """
    tenant = tenant_of(request.state.ticket)
    boundary = _boundary(request, context.settings.max_file_bytes)
    used = await files.used(tenant)
    form = _Form()
    with files.room(tenant, used) as room, context.held.hold() as hold:
        hold.take(HELD_BYTES)
        file_id = new_file_id()
        draft = await files.store.do(lambda: Draft(files.store, file_id))
        try:
            await _read(context, request, form, _parser(boundary, form), draft, room)
            wishes = form.wishes()
            path = files.store.path_of(file_id)
            await files.store.do(lambda: draft.keep(path))
            record = _record(file_id, tenant, form.filename, draft.num_bytes, wishes)
            await files.add(record)
        except BaseException:
            await asyncio.shield(files.store.do(draft.drop))
            await asyncio.shield(files.store.do(lambda: files.store.path_of(file_id).unlink(missing_ok=True)))
            raise
    return record


def _record(file_id: str, tenant: str, filename: str, num_bytes: int, wishes: FileForm) -> FileRecord:
    now = unix_time()
    wished_s = BATCH_EXPIRY_S if wishes.purpose == "batch" else None
    if wishes.expires_after is not None:
        wished_s = wishes.expires_after.seconds
    expires_at = None if wished_s is None else now + wished_s
    return FileRecord(file_id, tenant, filename, wishes.purpose, num_bytes, now, expires_at)


def _boundary(request: Request, max_file_bytes: int) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", "")[:1024])
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise HttpError(
            415, "The content type must be multipart/form-data with a boundary.", code="unsupported_media_type"
        )
    if len(boundary) > MAX_BOUNDARY_BYTES:
        _refuse(f"its boundary is longer than {MAX_BOUNDARY_BYTES} bytes")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "Compressed bodies are not taken.", code="unsupported_media_type")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:20]) > max_file_bytes + FORM_BYTES:
        raise file_too_large(max_file_bytes)
    return boundary


async def _read(
    context: Context, request: Request, form: _Form, parser: MultipartParser, draft: Draft, room: Room
) -> None:
    """The whole form: its fields into ``form``, its file into ``draft``."""
    settings = context.settings
    num_bytes, waiting = 0, bytearray()
    async for data in _chunks(request, settings.body_timeout_s):
        num_bytes += len(data)
        if num_bytes > settings.max_file_bytes + FORM_BYTES:
            raise file_too_large(settings.max_file_bytes)
        try:
            parser.write(data)
        except FormParserError as error:
            _refuse(str(error))
        for piece in form.pieces:
            room.take(len(piece))
            waiting += piece
        form.pieces.clear()
        if len(waiting) >= PIECE_BYTES:
            await _write(context, draft, waiting)
            waiting = bytearray()
    if not form.complete:
        _refuse("it ends before its closing boundary")
    await _write(context, draft, waiting)


async def _write(context: Context, draft: Draft, data: bytearray) -> None:
    await context.files.store.do(lambda: draft.write(data))


async def _chunks(request: Request, patience_s: float) -> AsyncIterator[bytes]:
    """The body as it arrives, as long as it does not arrive too slowly."""
    started_s, num_bytes, more = time.monotonic(), 0, True
    while more:
        left_s = patience_s + num_bytes / MIN_BYTES_PER_S - (time.monotonic() - started_s)
        try:
            async with asyncio.timeout(min(patience_s, left_s)):
                message = await request.receive()
        except TimeoutError:
            raise HttpError(
                408,
                f"The upload was slower than {MIN_BYTES_PER_S} bytes a second for more than {patience_s:g} s.",
                code="request_timeout",
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        data = message.get("body", b"")
        num_bytes += len(data)
        yield data


def _parser(boundary: bytes, form: _Form) -> MultipartParser:
    return MultipartParser(
        boundary,
        {
            "on_part_begin": form.part_begins,
            "on_header_begin": form.header_begins,
            "on_header_field": form.header_name,
            "on_header_value": form.header_value,
            "on_headers_finished": form.headers_end,
            "on_part_data": form.part_data,
            "on_end": form.ends,
        },
        max_header_count=MAX_PARTS,
        max_header_size=MAX_HEADER_BYTES,
    )


def _refuse(what: str) -> NoReturn:
    raise InvalidRequest(f"The body is not a form that can be read: {what[:200]}.", code="invalid_form")


class _Form:
    """What the parser tells, put together."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        """Of the file, since they were last taken away."""
        self.filename = ""
        self.complete = False
        self._values: dict[str, bytearray] = {}
        self._headers: list[tuple[bytearray, bytearray]] = []
        self._name = ""
        self._num_parts = 0

    def part_begins(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            _refuse(f"it has more than {MAX_PARTS} parts")
        self._headers = []

    def header_begins(self) -> None:
        self._headers.append((bytearray(), bytearray()))

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._headers[-1][0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[-1][1].extend(data[start:end])

    def headers_end(self) -> None:
        values = [value for name, value in self._headers if name.lower() == b"content-disposition"]
        kind, options = parse_options_header(values[0].decode("latin-1") if len(values) == 1 else "")
        if kind != b"form-data" or b"name" not in options:
            _refuse("a part has no Content-Disposition that names it")
        self._name = _text(options[b"name"])
        if self._name not in FIELDS:
            name = self._name[:64]
            raise InvalidRequest(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        if self._name in self._values:
            raise InvalidRequest(f"'{self._name}' stands in the form twice.", param=self._name)
        self._values[self._name] = bytearray()
        if self._name == "file":
            self.filename = _text(options.get(b"filename", b"")) or "file"

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.pieces.append(data[start:end])
            return
        value = self._values[self._name]
        value += data[start:end]
        if len(value) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"'{self._name}' is longer than {MAX_FIELD_BYTES} bytes.", param=self._name)

    def ends(self) -> None:
        self.complete = True

    def wishes(self) -> FileForm:
        """The fields, checked; the file itself stands as an empty one."""
        fields: dict[str, object] = {}
        for name in ("file", "purpose"):
            if name in self._values:
                fields[name] = _text(bytes(self._values[name])) if name == "purpose" else b""
        expiry: dict[str, object] = {}
        for name in ("anchor", "seconds"):
            if (value := self._values.get(f"expires_after[{name}]")) is not None:
                text = _text(bytes(value))
                expiry[name] = int(text) if name == "seconds" and text.isascii() and text.isdigit() else text
        if expiry:
            fields["expires_after"] = expiry
        try:
            return FileForm.model_validate(fields)
        except ValidationError as error:
            raise from_validation(error, FileForm) from None


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("a name or a field is not UTF-8")
