"""What a batch has done: two files that only grow, and what stands in them.

A line counts when it is on the disk, not before. Lines that finish while others are being flushed wait for the next
flush and share it. After a kill the files say themselves what is done: they are read again, whatever follows the last
whole line is cut off, and the lines that are not in them are run.

An answer of the endpoint with a status below 300 goes to ``output``, everything else to ``errors``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from tokenmill.server import jsonio
from tokenmill.server.batches.lines import BREATH_BYTES, BREATH_S, Stopped, digest
from tokenmill.server.errors import HttpError
from tokenmill.server.protocol.batches import BatchUsage, OutputLine
from tokenmill.server.store import Store, private_file, write_all

log = logging.getLogger(__name__)

Kind = Literal["output", "errors"]
KINDS: tuple[Kind, Kind] = ("output", "errors")
FULL_WAIT_S = 5.0
"""While the disk is full, finished lines are kept in memory and written again after this long."""


class Ledger:
    """The finished lines of one batch. ``open`` first, ``close`` last."""

    def __init__(self, store: Store, batch_id: str) -> None:
        self._store = store
        self._batch_id = batch_id
        self.done: set[bytes] = set()
        """Digests of the ``custom_id`` of every line that is on the disk."""
        self.counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.usage = no_usage()
        self._files: dict[Kind, IO[bytes]] = {}
        self._sizes: dict[Kind, int] = {}
        self._pending: list[tuple[Kind, OutputLine]] = []
        self._next: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._closed = asyncio.Event()

    def path(self, kind: Kind) -> Path:
        return self._store.partial(f"{self._batch_id}.{kind}")

    async def open(self) -> None:
        """Read what is there, and cut off what is not whole."""
        await self._store.do(self._open)

    async def record(self, lines: Sequence[tuple[Kind, OutputLine]]) -> None:
        """Put finished lines on the disk; they are there, and count, when this returns."""
        self._pending += lines
        if self._next is None:
            self._next = asyncio.create_task(self._flush())
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """Write what has been brought, unless the disk is full, and stop; what is not there will be run again."""
        self._closed.set()
        if self._next is not None:
            await asyncio.wait({self._next})
        async with self._writing:
            for file in self._files.values():
                file.close()
            self._files.clear()

    async def _flush(self) -> None:
        """A task of its own: a thread that writes cannot be stopped, and what it has written must be counted."""
        async with self._writing:
            self._next = None
            lines, self._pending = self._pending, []
            while True:
                try:
                    await self._store.do(partial(self._write, lines))
                    break
                except HttpError as error:
                    if self._closed.is_set():
                        raise
                    log.warning("batch %s waits: %s", self._batch_id, error.message)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closed.wait(), FULL_WAIT_S)

    # ---- in a thread ---------------------------------------------------------------------------------

    def _open(self) -> None:
        for kind in KINDS:
            file = private_file(self.path(kind), os.O_RDWR | os.O_CREAT)
            self._files[kind] = file
            self._sizes[kind] = self._read(kind, file)
            file.truncate(self._sizes[kind])
            file.seek(self._sizes[kind])

    def _read(self, kind: Kind, file: IO[bytes]) -> int:
        """Take over the whole lines of ``file``; how many bytes they have."""
        size = breath = 0
        with open(file.fileno(), "rb", closefd=False) as lines:
            for text in lines:
                try:
                    line = json.loads(text)
                except ValueError:
                    break
                if not text.endswith(b"\n"):
                    break
                self._count(kind, line)
                size += len(text)
                breath += len(text)
                if breath >= BREATH_BYTES:
                    if self._closed.is_set():
                        raise Stopped
                    breath = 0
                    time.sleep(BREATH_S)
        return size

    def _write(self, lines: Sequence[tuple[Kind, OutputLine]]) -> None:
        """All or, if the disk is full, nothing of them. Of two answers to a line the first one stands: when a batch is
        cancelled, some are on their way here of lines that are given up at the same moment."""
        new: dict[bytes, tuple[Kind, OutputLine]] = {}
        for kind, line in lines:
            if (key := digest(line["custom_id"])) not in self.done:
                new.setdefault(key, (kind, line))
        lines = list(new.values())
        texts = {kind: b"".join(jsonio.dumps(line) + b"\n" for k, line in lines if k == kind) for kind in KINDS}
        try:
            for kind, text in texts.items():
                if text:
                    write_all(self._files[kind], text)
                    os.fsync(self._files[kind].fileno())
        except OSError:
            for kind, file in self._files.items():
                file.truncate(self._sizes[kind])
                file.seek(self._sizes[kind])
            raise
        for kind, text in texts.items():
            self._sizes[kind] += len(text)
        for kind, line in lines:
            self._count(kind, line)

    def _count(self, kind: Kind, line: OutputLine) -> None:
        self.done.add(digest(line["custom_id"]))
        self.counts[kind] += 1
        if line["response"] is not None and isinstance(body := line["response"]["body"], dict):
            add_usage(self.usage, body.get("usage"))


def no_usage() -> BatchUsage:
    return {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }


def add_usage(total: BatchUsage, usage: Any) -> None:
    """Add one answer's usage: the responses endpoint has other names for it than the older ones."""
    if not isinstance(usage, dict):
        return
    for ours, theirs in (("input", "prompt"), ("output", "completion")):
        name = ours if f"{ours}_tokens" in usage else theirs
        total[f"{ours}_tokens"] += usage.get(f"{name}_tokens") or 0  # type: ignore[literal-required]
        details = usage.get(f"{name}_tokens_details") or {}
        field = "cached_tokens" if ours == "input" else "reasoning_tokens"
        total[f"{ours}_tokens_details"][field] += details.get(field) or 0  # type: ignore[literal-required]
    total["total_tokens"] += usage.get("total_tokens") or 0
