"""Carries batches out, from the check of their lines to their files, through restarts.

::

    validating ──→ in_progress ──→ finalizing ──→ completed
        │               ├── its time is over ───→ expired
        │               └── cancelling ─────────→ cancelled
        └── a line is wrong ─→ failed

Every batch that is not over has one task. A line is read when a slot is free, sent through the very handler that
answers clients, and recorded; so no more of a batch is in memory than its lines in flight. A line that the server turns
away (429, 503) keeps its slot and is sent again after the time that it was told; every other answer stands, errors too.

What a kill leaves is enough to go on: the status in the database, the finished lines in the ledger's files. Lines that
were in flight are run again, finished ones never. Whatever a status begins is done again from its beginning after a
restart, so each step is one that may be done twice. A server that has another model than a batch leaves it alone until
one comes that has it, or its time is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from typing import Literal

from starlette.types import ASGIApp

from tokenmill.core.errors import ModelNotFound
from tokenmill.server.batches.call import Answer, call
from tokenmill.server.batches.ledger import KINDS, Kind, Ledger
from tokenmill.server.batches.lines import MAX_INPUT_BYTES, Checked, Line, LineReader, Stopped, check, parse
from tokenmill.server.batches.records import BatchRecord, BatchTable, update
from tokenmill.server.batches.slots import Slots
from tokenmill.server.context import Context
from tokenmill.server.errors import HttpError
from tokenmill.server.files.records import FileRecord, insert
from tokenmill.server.generate import cancel
from tokenmill.server.protocol.batches import BatchObject, BatchStatus, OutputLine
from tokenmill.server.store import move, unix_time

log = logging.getLogger(__name__)

Outcome = Literal["completed", "expired", "cancelled"]

TURNED_AWAY = (429, 503)
MIN_WAIT_S, MAX_WAIT_S = 0.5, 60.0
"""Before a line is sent again that was turned away without being told when to come back, or again and again."""
TROUBLE_WAIT_S = 10.0
"""After a failure of the disk: before the batch is taken up again where it stands."""
SWEEP_S = 60.0
WRITE_AT_ONCE = 256
"""Lines that are given up together are recorded in groups of this size."""
REASONS = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}


class Running:
    """A batch that is not over, and what there is of it in memory."""

    def __init__(self, record: BatchRecord, ledger: Ledger) -> None:
        self.record = record
        self.ledger = ledger
        self.cancelled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def body(self) -> BatchObject:
        """What a client sees at this moment."""
        counts = self.ledger.counts
        total = self.record.body["request_counts"]["total"]
        progress = {"total": total, "completed": counts["output"], "failed": counts["errors"]}
        return {**self.record.body, "request_counts": progress, "usage": self.ledger.usage}  # type: ignore[typeddict-item]


class BatchRunner:
    """Runs the batches of one server: ``start``, then ``take`` and ``cancel``, then ``stop``."""

    def __init__(self, context: Context, app: ASGIApp) -> None:
        """``app`` is the server behind its guard."""
        self._context = context
        self._app = app
        self._store = context.files.store
        self.table = BatchTable(self._store, context.settings.max_tenant_batches)
        self._slots = Slots(context.settings.max_batch_lines)
        self._running: dict[str, Running] = {}
        self._checking = asyncio.Lock()
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what an earlier process left; a store that begins empty is opened when first used."""
        if self._store.opened:
            records = await self.table.unfinished()
            for record in records:
                await self._store.do(partial(self._take_back, record))
            await self._context.files.clean({f"{record.id}.{kind}" for record in records for kind in KINDS})
            for record in records:
                self._run(record)
        self._housekeeping = asyncio.create_task(self._keep_house())

    async def take(self, record: BatchRecord) -> BatchObject:
        """Take on a new batch; it is durable when this returns.

        Raises:
            HttpError: see ``BatchTable.add``.
        """
        await self.table.add(record)
        return self._run(record).body

    def body_of(self, record: BatchRecord) -> BatchObject:
        """What a client sees of a batch that was just read from the database."""
        running = self._running.get(record.id)
        return record.body if running is None else running.body

    async def cancel(self, record: BatchRecord) -> BatchObject:
        """Stop a batch: lines in flight are given up, the others never begun.

        Raises:
            HttpError: 409, it is over or all its lines are done.
        """
        running = self._running.get(record.id)
        status = record.body["status"] if running is None else running.record.body["status"]
        if status in ("cancelling", "cancelled"):
            return self.body_of(record)
        if running is None or status not in ("validating", "in_progress"):
            raise HttpError(
                409,
                f"A batch that is '{status}' cannot be cancelled.",
                code="batch_not_cancellable",
                headers={"x-should-retry": "false"},
            )
        running.cancelled.set()
        await self._enter(running, "cancelling")
        return running.body

    async def stop(self) -> None:
        """Leave everything as it stands; the next start goes on from there. Does nothing the second time."""
        tasks = [running.task for running in self._running.values() if running.task is not None]
        if self._housekeeping is not None:
            tasks.append(self._housekeeping)
        self._housekeeping = None
        await cancel(*tasks)

    # ---- one batch -----------------------------------------------------------------------------------

    def _run(self, record: BatchRecord) -> Running:
        running = self._running[record.id] = Running(record, Ledger(self._store, record.id))
        if record.body["status"] == "cancelling":
            running.cancelled.set()
        running.task = asyncio.create_task(self._drive(running), name=record.id)
        return running

    async def _drive(self, running: Running) -> None:
        """See a batch to its end, whatever the disk does meanwhile."""
        while True:
            try:
                await self._carry_out(running)
                del self._running[running.record.id]
                return
            except Exception:
                log.exception("batch %s is taken up again in %g s", running.record.id, TROUBLE_WAIT_S)
            finally:
                await running.ledger.close()
            await asyncio.sleep(TROUBLE_WAIT_S)
            running.ledger = Ledger(self._store, running.record.id)

    async def _carry_out(self, running: Running) -> None:
        record = running.record
        if record.body["status"] == "validating" and not await self._validate(running):
            return
        await self._store.do(partial(self._take_back, record))
        async with self._checking:
            await running.ledger.open()
        outcome: Outcome = "completed"
        if record.body["status"] == "in_progress":
            outcome = await self._until_over(running)
        if running.cancelled.is_set():
            outcome = "cancelled"
        if outcome == "completed":
            await self._enter(running, "finalizing")
        else:
            await self._give_up_rest(running, outcome)
        await self._finish(running, outcome)

    async def _validate(self, running: Running) -> bool:
        """Check the lines; False if the batch has ended by that."""
        record, context = running.record, self._context
        reader = self._reader(record, context.settings.max_body_bytes)
        work = partial(check, reader, record.body["endpoint"], context.check_model, running.cancelled.is_set)
        try:
            async with self._checking:
                checked = await self._store.do(work)
        except Stopped:
            checked = Checked(0, None, [])
        finally:
            reader.close()
        if running.cancelled.is_set():
            return True
        record.body["model"] = checked.model
        if checked.errors:
            record.body["errors"] = {"object": "list", "data": checked.errors}
            await self._enter(running, "failed")
            return False
        record.body["request_counts"]["total"] = checked.num_lines
        await self._enter(running, "in_progress")
        return True

    async def _until_over(self, running: Running) -> Outcome:
        """Run lines until they are done, time is over, or the batch is cancelled."""
        work = asyncio.create_task(self._run_lines(running))
        cancelled = asyncio.create_task(running.cancelled.wait())
        left_s = max(0.0, running.record.body["expires_at"] - time.time())
        try:
            await asyncio.wait({work, cancelled}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return "completed"
            return "cancelled" if running.cancelled.is_set() else "expired"
        finally:
            await cancel(work, cancelled)

    async def _run_lines(self, running: Running) -> None:
        record, tenant = running.record, running.record.access.tenant
        try:
            self._context.check_model(record.body["model"])
        except ModelNotFound as error:  # there before, or the check of the lines would have said so
            log.warning("batch %s waits for a server of its model: %s", record.id, error.message)
            await asyncio.get_running_loop().create_future()
        reader = self._reader(record)
        try:
            async with asyncio.TaskGroup() as lines:
                while (line := await self._store.do(partial(_next_undone, reader, running))) is not None:
                    await self._slots.take(tenant)
                    task = lines.create_task(self._run_line(running, line))
                    task.add_done_callback(lambda _: self._slots.release())
        finally:
            reader.close()

    async def _run_line(self, running: Running, line: Line) -> None:
        record = running.record
        answer = await self._answer(record, line)
        kind: Kind = "output" if answer.status < 300 else "errors"
        response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
        made = OutputLine(id=_line_id(), custom_id=line.custom_id, response=response, error=None)  # type: ignore[typeddict-item]
        await running.ledger.record([(kind, made)])
        self._context.metrics.batch_lines.labels("completed" if kind == "output" else "failed").inc()

    async def _answer(self, record: BatchRecord, line: Line) -> Answer:
        """The endpoint's answer, however often the server turns the line away before."""
        body, wait_s = line.encoded(), MIN_WAIT_S
        while True:
            period = self._slots.period
            answer = await call(self._app, record.body["endpoint"], body, record.access)
            if answer.status not in TURNED_AWAY:
                self._slots.answered()
                return answer
            self._slots.refused(period)
            self._context.metrics.batch_lines.labels("turned_away").inc()
            await asyncio.sleep(max(answer.retry_after_s or 0.0, wait_s) * random.uniform(1.0, 1.25))
            wait_s = min(2 * wait_s, MAX_WAIT_S)

    async def _give_up_rest(self, running: Running, outcome: Outcome) -> None:
        """Record every line that has no answer as not executed."""
        code, message = REASONS[outcome]
        if not running.record.body["request_counts"]["total"]:
            return  # cancelled before its lines were known
        reader = self._reader(running.record)
        try:
            while group := await self._store.do(partial(_next_group, reader, running)):
                error = {"code": code, "message": message}
                lines = [
                    OutputLine(id=_line_id(), custom_id=line.custom_id, response=None, error=error)  # type: ignore[typeddict-item]
                    for line in group
                ]
                await running.ledger.record([("errors", line) for line in lines])
        finally:
            reader.close()

    async def _finish(self, running: Running, outcome: Outcome) -> None:
        """Publish the files and the end, both or neither."""
        record = running.record
        await running.ledger.close()
        body = running.body
        now = unix_time()
        files = await self._store.do(lambda: list(self._publish(record, now)))
        names = {file.id for file in files}
        body["output_file_id"] = record.output_id if record.output_id in names else None
        body["error_file_id"] = record.error_id if record.error_id in names else None
        body["status"] = outcome
        body[f"{outcome}_at"] = now  # type: ignore[literal-required]
        ended = BatchRecord(record.id, record.access, body, record.output_ttl_s, record.output_id, record.error_id)

        def work(db: sqlite3.Connection) -> None:
            for file in files:
                insert(db, file)
            update(db, ended)

        await self._store.run(work)
        record.body = body

    def _publish(self, record: BatchRecord, now: int) -> Iterator[FileRecord]:
        """Move what was written to where whole files are. Blocks."""
        for kind, file_id in (("output", record.output_id), ("errors", record.error_id)):
            source = self._store.partial(f"{record.id}.{kind}")
            num_bytes = source.stat().st_size if source.exists() else 0
            if not num_bytes:
                source.unlink(missing_ok=True)
                continue
            move(source, self._store.path_of(file_id))
            name = f"{record.id}_{'output' if kind == 'output' else 'error'}.jsonl"
            expires_at = None if record.output_ttl_s is None else now + record.output_ttl_s
            yield FileRecord(file_id, record.access.tenant, name, "batch_output", num_bytes, now, expires_at)

    def _take_back(self, record: BatchRecord) -> None:
        """Files that were moved by a ``_publish`` that did not come to its end. Blocks."""
        for kind, file_id in (("output", record.output_id), ("errors", record.error_id)):
            path = self._store.path_of(file_id)
            if path.exists():
                move(path, self._store.partial(f"{record.id}.{kind}"))

    # ---- small things --------------------------------------------------------------------------------

    async def _enter(self, running: Running, status: BatchStatus) -> None:
        record = running.record
        record.body = {**record.body, "status": status, f"{status}_at": unix_time()}  # type: ignore[misc]
        await self._store.run(lambda db: update(db, record))

    def _reader(self, record: BatchRecord, max_line_bytes: int = MAX_INPUT_BYTES) -> LineReader:
        """Of the input. Lines that have been checked are read whatever the limit is by now."""
        return LineReader(self._store.path_of(record.body["input_file_id"]), max_line_bytes)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._store.opened:
                try:
                    await self._context.files.sweep()
                except Exception:
                    log.exception("expired files could not be deleted; the next attempt is in %g s", SWEEP_S)


def _next_undone(reader: LineReader, running: Running) -> Line | None:
    """The next line that has no answer yet; all have been checked. Blocks."""
    while (text := reader.next()) is not None:
        line = parse(text, running.record.body["endpoint"])
        if line.key not in running.ledger.done:
            return line
    return None


def _next_group(reader: LineReader, running: Running) -> list[Line]:
    group: list[Line] = []
    while len(group) < WRITE_AT_ONCE and (line := _next_undone(reader, running)) is not None:
        group.append(line)
    return group


def _line_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"
