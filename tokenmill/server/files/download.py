"""Sending a file: in pieces, from the disk to the connection, never more than one piece in memory.

``Range`` is not honoured (a server may ignore it): whatever a client asks for, it gets the whole file. A client that
takes nothing for ``write_stall_s`` is cut off, as from a stream of tokens.
"""

from __future__ import annotations

import asyncio
from typing import IO
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokenmill.server.context import Context
from tokenmill.server.files.records import FileRecord, no_such_file

PIECE_BYTES = 2**18
MAX_NAME = 200
"""Characters of a file's name that a browser is told."""


class Download(Response):
    """The contents of ``record``."""

    def __init__(self, context: Context, record: FileRecord) -> None:
        name = quote(record.filename[:MAX_NAME], safe="")
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(record.num_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{name}",
            "x-content-type-options": "nosniff",
            "accept-ranges": "none",
        }
        self.status_code = 200
        self.background = None
        self.init_headers(headers)
        self._context = context
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        store = self._context.files.store
        path = store.path_of(self._record.id)
        try:
            file = await store.do(lambda: open(path, "rb", buffering=0))  # noqa: SIM115  (closed below)
        except FileNotFoundError:  # deleted a moment ago
            raise no_such_file(self._record.id) from None
        try:
            await self._send(scope, send, file)
        except TimeoutError:
            self._context.cut(scope)
        finally:
            file.close()

    async def _send(self, scope: Scope, send: Send, file: IO[bytes]) -> None:
        do, stall_s = self._context.files.store.do, self._context.settings.write_stall_s
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        more = scope["method"] != "HEAD"
        while more:
            piece = await do(lambda: file.read(PIECE_BYTES))
            more = bool(piece)
            if more:
                async with asyncio.timeout(stall_s):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
