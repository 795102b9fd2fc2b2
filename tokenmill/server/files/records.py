"""What files there are, whose they are, and what becomes of them in time.

A tenant sees its own files and nothing else: every question to the database names the tenant, so that another's file
and one that never was are the same answer. A file past its expiry is gone for every reader at once; its contents
follow when the next sweep comes.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tokenmill.server.errors import HttpError
from tokenmill.server.protocol.files import FileObject
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Store, unix_time

_COLUMNS = "id, tenant, filename, purpose, num_bytes, created_at, expires_at"
_LIVE = "(expires_at IS NULL OR expires_at > :now)"
_UNUSED = "NOT EXISTS (SELECT 1 FROM batches WHERE over = 0 AND input_file_id = files.id)"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file that is whole."""

    id: str
    tenant: str
    filename: str
    """As the client told it: shown again, never a path."""
    purpose: str
    num_bytes: int
    created_at: int
    expires_at: int | None = None

    @property
    def body(self) -> FileObject:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


def new_file_id() -> str:
    """128 random bits: nobody finds another's file by guessing."""
    return f"file-{secrets.token_hex(16)}"


def no_such_file(file_id: str, param: str | None = None) -> HttpError:
    return HttpError(404, f"No such file: '{file_id[:64]}'.", code="file_not_found", param=param)


class Files:
    """The table of files, and their contents in the store."""

    def __init__(self, store: Store, settings: ServerSettings) -> None:
        self.store = store
        self._settings = settings
        self._arriving: dict[str, list[int]] = {}

    async def find(self, tenant: str, file_id: str, param: str | None = None) -> FileRecord:
        """The file ``file_id`` of ``tenant``.

        Raises:
            HttpError: 404, there is none.
        """
        record = await self.store.run(lambda db: select(db, tenant, file_id))
        if record is None:
            raise no_such_file(file_id, param)
        return record

    async def page(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> tuple[list[FileRecord], bool]:
        """Up to ``limit`` files in order of their making, and whether there are more.

        Raises:
            HttpError: 404, ``after`` is no file of this tenant.
        """
        ascending = order == "asc"
        where = f"tenant = :tenant AND {_LIVE}" + (" AND purpose = :purpose" if purpose is not None else "")

        def work(db: sqlite3.Connection) -> list[FileRecord]:
            values = {"tenant": tenant, "purpose": purpose, "now": unix_time(), "limit": limit + 1}
            condition = where
            if after is not None:
                row = db.execute("SELECT seq FROM files WHERE id = ? AND tenant = ?", (after, tenant)).fetchone()
                if row is None:
                    raise no_such_file(after, "after")
                values["seq"] = row[0]
                condition += f" AND seq {'>' if ascending else '<'} :seq"
            direction = "ASC" if ascending else "DESC"
            sql = f"SELECT {_COLUMNS} FROM files WHERE {condition} ORDER BY seq {direction} LIMIT :limit"
            rows = db.execute(sql, values)
            return [FileRecord(*row) for row in rows]

        found = await self.store.run(work)
        return found[:limit], len(found) > limit

    async def delete(self, tenant: str, file_id: str) -> None:
        """Forget a file and its contents.

        Raises:
            HttpError: 404, there is none; 409, a batch still reads it.
        """

        def work(db: sqlite3.Connection) -> None:
            if select(db, tenant, file_id) is None:
                raise no_such_file(file_id)
            if not db.execute(f"DELETE FROM files WHERE id = ? AND {_UNUSED}", (file_id,)).rowcount:
                raise HttpError(
                    409,
                    f"A batch still reads the file '{file_id}'; cancel the batch first.",
                    code="file_in_use",
                    headers={"x-should-retry": "false"},
                )

        await self.store.run(work)
        path = self.store.path_of(file_id)
        await self.store.do(lambda: path.unlink(missing_ok=True))

    async def add(self, record: FileRecord) -> None:
        """Make known a file whose contents are in the store.

        Raises:
            HttpError: 403, other uploads have used up the tenant's share meanwhile.
        """

        def work(db: sqlite3.Connection) -> None:
            Room(self._settings, _used(db, record.tenant), [1, 0]).take(record.num_bytes)
            insert(db, record)

        await self.store.run(work)

    @contextmanager
    def room(self, tenant: str, used: tuple[int, int]) -> Iterator[Room]:
        """Room for one more file of ``tenant``, which has ``used`` (files, bytes) already; what arrives counts too."""
        arriving = self._arriving.setdefault(tenant, [0, 0])
        room = Room(self._settings, used, arriving)
        arriving[0] += 1
        try:
            room.take(0)
            yield room
        finally:
            arriving[0] -= 1
            arriving[1] -= room.num_bytes
            if not arriving[0]:
                self._arriving.pop(tenant, None)

    async def used(self, tenant: str) -> tuple[int, int]:
        """How many files ``tenant`` has, and their bytes."""
        return await self.store.run(lambda db: _used(db, tenant))

    async def sweep(self) -> None:
        """Delete what has expired and is not read by a batch."""

        def work(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(f"DELETE FROM files WHERE expires_at <= ? AND {_UNUSED} RETURNING id", (unix_time(),))
            return [row[0] for row in rows.fetchall()]

        await self._unlink(await self.store.run(work))

    async def clean(self, partial: set[str]) -> None:
        """After a start: delete contents that no row names, and partial ones that are not in ``partial``."""

        def known(db: sqlite3.Connection) -> set[str]:
            return {row[0] for row in db.execute("SELECT id FROM files")}

        rows = await self.store.run(known)
        await self._unlink([name for name in self.store.names("files") if name not in rows])
        for name in self.store.names("partial"):
            if name not in partial:
                self.store.partial(name).unlink(missing_ok=True)

    async def _unlink(self, names: list[str]) -> None:
        def work() -> None:
            for name in names:
                self.store.path_of(name).unlink(missing_ok=True)

        if names:
            await self.store.do(work)


class Room:
    """What one upload may still take of its tenant's share."""

    def __init__(self, settings: ServerSettings, used: tuple[int, int], arriving: list[int]) -> None:
        self._settings = settings
        self._used = used
        self._arriving = arriving
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count ``num_bytes`` more.

        Raises:
            HttpError: 413, the file is too large; 403, the tenant's share is used up.
        """
        settings = self._settings
        self.num_bytes += num_bytes
        self._arriving[1] += num_bytes
        if self.num_bytes > settings.max_file_bytes:
            raise file_too_large(settings.max_file_bytes)
        if self._used[0] + self._arriving[0] > settings.max_tenant_files:
            raise _share_used_up(f"{settings.max_tenant_files} files")
        if self._used[1] + self._arriving[1] > settings.max_tenant_bytes:
            raise _share_used_up(f"{settings.max_tenant_bytes} bytes of files")


def file_too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"A file may hold at most {max_bytes} bytes.", code="file_too_large", param="file")


def _share_used_up(what: str) -> HttpError:
    return HttpError(403, f"{what} is all that you may store here; delete some first.", code="storage_quota_exceeded")


def _used(db: sqlite3.Connection, tenant: str) -> tuple[int, int]:
    row = db.execute(
        f"SELECT COUNT(*), COALESCE(SUM(num_bytes), 0) FROM files WHERE tenant = :tenant AND {_LIVE}",
        {"tenant": tenant, "now": unix_time()},
    ).fetchone()
    return int(row[0]), int(row[1])


def select(db: sqlite3.Connection, tenant: str, file_id: str) -> FileRecord | None:
    """The file, if this tenant has it and it has not expired."""
    row = db.execute(
        f"SELECT {_COLUMNS} FROM files WHERE id = :id AND tenant = :tenant AND {_LIVE}",
        {"id": file_id, "tenant": tenant, "now": unix_time()},
    ).fetchone()
    return None if row is None else FileRecord(*row)


def insert(db: sqlite3.Connection, record: FileRecord) -> None:
    """A second time does nothing: finishing a batch may be repeated after a kill."""
    values = (
        record.id,
        record.tenant,
        record.filename,
        record.purpose,
        record.num_bytes,
        record.created_at,
        record.expires_at,
    )
    db.execute(f"INSERT OR IGNORE INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
