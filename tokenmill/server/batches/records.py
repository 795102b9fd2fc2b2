"""What batches there are: one row each, the public object as JSON beside what only the server needs.

A row changes only when the status does; how many lines are done in between is told by the ledger's files.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from dataclasses import asdict, dataclass, fields
from typing import Any

from tokenmill.server.access import Access, Limits
from tokenmill.server.batches.ledger import no_usage
from tokenmill.server.errors import HttpError
from tokenmill.server.files.records import new_file_id
from tokenmill.server.protocol.batches import BatchObject, BatchRequest
from tokenmill.server.store import Store, unix_time

WINDOW_S = 24 * 3600
_COLUMNS = "id, tenant, body, private"


@dataclass(slots=True)
class BatchRecord:
    """One batch. ``body`` is what clients see."""

    id: str
    access: Access
    """Of whoever made it: its lines are run with it."""
    body: BatchObject
    output_ttl_s: int | None
    output_id: str
    error_id: str
    """Ids that its files will have: known from the start, so that finishing twice finishes the same."""

    @property
    def over(self) -> bool:
        return self.body["status"] in ("failed", "completed", "expired", "cancelled")


def no_such_batch(batch_id: str, param: str | None = None) -> HttpError:
    return HttpError(404, f"No such batch: '{batch_id[:64]}'.", code="batch_not_found", param=param)


def new_batch(access: Access, wish: BatchRequest) -> BatchRecord:
    """A batch that has just been asked for."""
    now = unix_time()
    batch_id = f"batch_{secrets.token_hex(16)}"
    body: BatchObject = {
        "id": batch_id,
        "object": "batch",
        "endpoint": wish.endpoint,
        "model": None,
        "errors": None,
        "input_file_id": wish.input_file_id,
        "completion_window": wish.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "in_progress_at": None,
        "expires_at": now + WINDOW_S,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": no_usage(),
        "metadata": wish.metadata,
    }
    ttl_s = None if wish.output_expires_after is None else wish.output_expires_after.seconds
    return BatchRecord(batch_id, access, body, ttl_s, new_file_id(), new_file_id())


class BatchTable:
    """The rows of all batches. A tenant's questions name the tenant, as for files."""

    def __init__(self, store: Store, max_unfinished: int) -> None:
        self._store = store
        self._max_unfinished = max_unfinished

    async def add(self, record: BatchRecord) -> None:
        """Take a batch on.

        Raises:
            HttpError: 404, the input file is not (or no longer) there; 429, the tenant has too many unfinished ones.
        """
        tenant, file_id = record.access.tenant, record.body["input_file_id"]

        def work(db: sqlite3.Connection) -> None:
            sql = "SELECT COUNT(*) FROM batches WHERE tenant = ? AND over = 0"
            if db.execute(sql, (tenant,)).fetchone()[0] >= self._max_unfinished:
                raise HttpError(
                    429,
                    f"You have {self._max_unfinished} unfinished batches, the most at a time; wait for one to end.",
                    code="too_many_batches",
                    headers={"retry-after": "60"},
                )
            if db.execute("SELECT 1 FROM files WHERE id = ? AND tenant = ?", (file_id, tenant)).fetchone() is None:
                raise HttpError(404, f"No such file: '{file_id}'.", code="file_not_found", param="input_file_id")
            db.execute(
                "INSERT INTO batches (id, tenant, over, input_file_id, body, private) VALUES (?, ?, 0, ?, ?, ?)",
                (record.id, tenant, file_id, json.dumps(record.body), _private(record)),
            )

        await self._store.run(work)

    async def find(self, tenant: str, batch_id: str) -> BatchRecord:
        """The batch ``batch_id`` of ``tenant``.

        Raises:
            HttpError: 404, there is none.
        """

        def work(db: sqlite3.Connection) -> BatchRecord | None:
            sql = f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND tenant = ?"
            row = db.execute(sql, (batch_id, tenant)).fetchone()
            return None if row is None else _record(row)

        record = await self._store.run(work)
        if record is None:
            raise no_such_batch(batch_id)
        return record

    async def page(self, tenant: str, *, after: str | None, limit: int) -> tuple[list[BatchRecord], bool]:
        """Up to ``limit`` batches, the newest first, and whether there are more.

        Raises:
            HttpError: 404, ``after`` is no batch of this tenant.
        """

        def work(db: sqlite3.Connection) -> list[BatchRecord]:
            before = 2**62
            if after is not None:
                row = db.execute("SELECT seq FROM batches WHERE id = ? AND tenant = ?", (after, tenant)).fetchone()
                if row is None:
                    raise no_such_batch(after, "after")
                before = row[0]
            sql = f"SELECT {_COLUMNS} FROM batches WHERE tenant = ? AND seq < ? ORDER BY seq DESC LIMIT ?"
            return [_record(row) for row in db.execute(sql, (tenant, before, limit + 1))]

        found = await self._store.run(work)
        return found[:limit], len(found) > limit

    async def unfinished(self) -> list[BatchRecord]:
        """Of all tenants, the oldest first: what a start has to go on with."""
        sql = f"SELECT {_COLUMNS} FROM batches WHERE over = 0 ORDER BY seq"
        return await self._store.run(lambda db: [_record(row) for row in db.execute(sql)])


def update(db: sqlite3.Connection, record: BatchRecord) -> None:
    """Write down what has become of a batch."""
    db.execute("UPDATE batches SET over = ?, body = ? WHERE id = ?", (record.over, json.dumps(record.body), record.id))


def _private(record: BatchRecord) -> str:
    return json.dumps(
        {
            "access": asdict(record.access),
            "output_ttl_s": record.output_ttl_s,
            "output_id": record.output_id,
            "error_id": record.error_id,
        }
    )


def _record(row: tuple[str, str, str, str]) -> BatchRecord:
    batch_id, _, body, text = row
    private: dict[str, Any] = json.loads(text)
    access = _known(Access, private.pop("access"))
    own, whole = (Limits(**_known(Limits, access.pop(name, {}))) for name in ("limits", "tenant_limits"))
    return BatchRecord(batch_id, Access(**access, limits=own, tenant_limits=whole), json.loads(body), **private)


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Only the fields that this version has: another may have written the row."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
