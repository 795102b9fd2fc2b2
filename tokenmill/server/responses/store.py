"""``ResponseStore``: what is kept of responses, so that they can be asked for and continued.

A row is one response: its body and the items of its own input. The conversation before it is not copied: a row names
its predecessor, and ``chain`` walks back. Every row belongs to a tenant, and every question names one: another
tenant's response is one that does not exist, found out by the same look-up.

Three bounds keep it small: how many, how many bytes, how long (``Bounds``). When there are too many or too much, the
tenant who holds most gives up the one that it used longest ago, so that nobody drives out another's by storing
much. To continue a response is to use it and all before it: a conversation that goes on keeps its beginning.

It lives in memory, or in the server's database (``server/store.py``) where that outlives the process.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import TypeAdapter

from tokenmill.server import jsonio
from tokenmill.server.protocol.response_body import Item, ResponseBody

T = TypeVar("T")

MAX_READ_BYTES = 2**26
"""Most that is read of the store for one request."""
INLINE_BYTES = 2**16
"""More than this is parsed in a thread."""

_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    previous TEXT,
    over INTEGER NOT NULL,
    used_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    num_items INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    body BLOB NOT NULL,
    input BLOB NOT NULL
)"""
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS responses_by_tenant ON responses (tenant, used_at, num_bytes)",
    "CREATE INDEX IF NOT EXISTS responses_by_expiry ON responses (expires_at)",
    "CREATE INDEX IF NOT EXISTS responses_unfinished ON responses (id) WHERE over = 0",
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept."""

    num_responses: int
    num_bytes: int
    ttl_s: float
    """How long after it was made a response can be asked for."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that is kept."""

    response: ResponseBody
    input: list[Item]
    """Its own, without what it continued."""

    @property
    def over(self) -> bool:
        return self.response["status"] not in ("queued", "in_progress")


class NotKept(Exception):
    """There is no response with the id ``args[0]``, or it is another tenant's."""


class Database(Protocol):
    """Does one piece of work after the other, each a transaction, in a thread of its own."""

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class Memory:
    """A database that ends with the process."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "responses")
        self._db = sqlite3.connect(":memory:", check_same_thread=False)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._db.close()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._db:
            return work(self._db)


class ResponseStore:
    """The table of responses. Calls may be made at any time; each is one transaction."""

    def __init__(self, bounds: Bounds, database: Database) -> None:
        self._bounds = bounds
        self._database = database
        self._prepared = False

    async def put(self, tenant: str, stored: Stored) -> None:
        """Keep it, in the place of the one with its id if there is one."""
        response = stored.response.copy()  # the writer goes on with its own

        def work(db: sqlite3.Connection) -> None:
            now = time.time()
            db.execute("DELETE FROM responses WHERE expires_at <= ?", (now,))
            body, items = jsonio.dumps(response), jsonio.dumps(stored.input)
            expires_at = response["created_at"] + self._bounds.ttl_s
            num_items, num_bytes = len(stored.input) + len(response["output"]), len(body) + len(items)
            previous = response["previous_response_id"]
            row = (response["id"], tenant, previous, stored.over, now, expires_at, num_items, num_bytes, body, items)
            db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._evict(db)

        await self._run(work)

    async def get(self, tenant: str, response_id: str) -> Stored | None:
        """The one with this id, if it is there and the tenant's."""
        return (await self.get_all(tenant, [response_id])).get(response_id)

    async def get_all(self, tenant: str, response_ids: Collection[str]) -> dict[str, Stored]:
        """Those of ``response_ids`` that are there and the tenant's, as far as ``MAX_READ_BYTES`` reach."""

        def work(db: sqlite3.Connection) -> list[_Row]:
            found: list[_Row] = []
            num_bytes = 0
            for response_id in response_ids:
                row = _find(db, tenant, response_id)
                if row is not None and num_bytes <= MAX_READ_BYTES:
                    found.append(row)
                    num_bytes += row.num_bytes
            return found

        stored = await _parsed(await self._run(work))
        return {each.response["id"]: each for each in stored}

    async def chain(self, tenant: str, response_id: str, max_items: int) -> tuple[list[Stored], bool]:
        """The response and all that it continues, the first one first, and whether that is all.

        Goes no further back once it has more than ``max_items`` items or ``MAX_READ_BYTES``.

        Raises:
            NotKept: it, or one before it, is not there.
        """

        def work(db: sqlite3.Connection) -> tuple[list[_Row], bool]:
            found: list[_Row] = []
            at: str | None = response_id
            num_items = num_bytes = 0
            while at is not None and num_items <= max_items and num_bytes <= MAX_READ_BYTES:
                row = _find(db, tenant, at)
                if row is None:
                    raise NotKept(at)
                found.append(row)
                num_items += row.num_items
                num_bytes += row.num_bytes
                at = row.previous
            now = time.time()
            db.executemany("UPDATE responses SET used_at = ? WHERE id = ?", [(now, row.id) for row in found])
            return found[::-1], at is None

        rows, is_all = await self._run(work)
        return await _parsed(rows), is_all

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Whether it was there."""

        def work(db: sqlite3.Connection) -> bool:
            gone = db.execute("DELETE FROM responses WHERE id = ? AND tenant = ?", (response_id, tenant))
            return gone.rowcount > 0

        return await self._run(work)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if not self._prepared:  # a transaction of its own: what work raises must not take the table back
            await self._database.run(_prepare)
            self._prepared = True
        return await self._database.run(work)

    def _evict(self, db: sqlite3.Connection) -> None:
        for measure, limit in (("COUNT(*)", self._bounds.num_responses), ("SUM(num_bytes)", self._bounds.num_bytes)):
            while (db.execute(f"SELECT {measure} FROM responses").fetchone()[0] or 0) > limit:
                holder = f"SELECT tenant FROM responses GROUP BY tenant ORDER BY {measure} DESC LIMIT 1"
                oldest = f"SELECT id FROM responses WHERE tenant = ({holder}) ORDER BY used_at LIMIT 1"
                db.execute(f"DELETE FROM responses WHERE id = ({oldest})")


class _Row(NamedTuple):
    id: str
    previous: str | None
    num_items: int
    num_bytes: int
    body: bytes
    input: bytes


def _find(db: sqlite3.Connection, tenant: str, response_id: str) -> _Row | None:
    row = db.execute(
        f"SELECT {', '.join(_Row._fields)} FROM responses WHERE id = ? AND tenant = ? AND expires_at > ?",
        (response_id, tenant, time.time()),
    ).fetchone()
    return None if row is None else _Row(*row)


async def _parsed(rows: list[_Row]) -> list[Stored]:
    """Neither the event loop nor the database, which others wait for, parses much."""

    def parse() -> list[Stored]:
        return [Stored(_JSON.validate_json(row.body), _JSON.validate_json(row.input)) for row in rows]

    return await asyncio.to_thread(parse) if sum(row.num_bytes for row in rows) > INLINE_BYTES else parse()


def _prepare(db: sqlite3.Connection) -> None:
    """The table, and an end for what an earlier process left unfinished."""
    db.execute(_TABLE)
    for index in _INDEXES:
        db.execute(index)
    for response_id, body in db.execute("SELECT id, body FROM responses WHERE over = 0").fetchall():
        response = _JSON.validate_json(body)
        response["status"] = "failed"
        response["error"] = {"code": "server_error", "message": "The server was restarted before this was complete."}
        db.execute("UPDATE responses SET over = 1, body = ? WHERE id = ?", (jsonio.dumps(response), response_id))


_JSON: TypeAdapter[Any] = TypeAdapter(Any)
