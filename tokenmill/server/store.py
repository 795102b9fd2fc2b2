"""Where the server keeps what outlives a request: one folder, one process at a time.

::

    DIR/lock            held for as long as the process lives, however it ends
    DIR/store.db        SQLite with a write-ahead log: what there is, whose it is, how far it has come
    DIR/files/ID        whole contents, under ids made here
    DIR/partial/NAME    contents that are still being written

Three rules keep it whole through a kill at any moment. Contents are written to ``partial``, flushed to the disk and
only then renamed into ``files``; a row of the database that names them is written after that, in one transaction with
whatever else changes. So a row's contents are always there and whole, and contents without a row are rubbish that
the next start sweeps away. Nothing that a client sends is ever part of a path.

Neither the database nor a disk is waited for on the event loop: ``run`` uses one thread that owns the connection,
``do`` a few others.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from tokenmill.core.errors import SetupError
from tokenmill.server.errors import HttpError

log = logging.getLogger(__name__)

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
);
CREATE INDEX IF NOT EXISTS files_by_tenant ON files (tenant, seq);
CREATE INDEX IF NOT EXISTS files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    over INTEGER NOT NULL,
    input_file_id TEXT NOT NULL,
    body TEXT NOT NULL,
    private TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_by_tenant ON batches (tenant, seq);
CREATE INDEX IF NOT EXISTS batches_unfinished ON batches (seq) WHERE over = 0;
"""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FILE_THREADS = 4

T = TypeVar("T")


def storage_full() -> HttpError:
    """The disk has no room: nothing of the request was kept."""
    return HttpError(
        507,
        "The server has no room left on its disk; nothing was stored. Delete files, or tell the operator.",
        code="storage_full",
        headers={"x-should-retry": "false"},
    )


@contextmanager
def told_if_full() -> Iterator[None]:
    """Turn the ways in which a full disk shows itself into ``storage_full``."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise storage_full() from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        raise storage_full() from error


class Store:
    """The folder, its lock, its database and its threads."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder`` is opened at once; None makes a private temporary one when something is first stored.

        Raises:
            SetupError: the folder cannot be written to, belongs to another version, or is in use.
        """
        self._folder = folder
        self.lasting = folder is not None
        """What is stored is there after a restart."""
        self._lock: IO[bytes] | None = None
        self._db: sqlite3.Connection | None = None
        self._opening = threading.Lock()
        self._db_thread = ThreadPoolExecutor(1, "store-db")
        self._file_threads = ThreadPoolExecutor(FILE_THREADS, "store-files")
        if folder is not None:
            self._open()

    @property
    def opened(self) -> bool:
        return self._db is not None

    def path_of(self, file_id: str) -> Path:
        """Where the contents of a file lie. ``file_id`` comes from the database, never from a request."""
        return self._place("files", file_id)

    def partial(self, name: str) -> Path:
        """Where contents lie that are not whole yet."""
        return self._place("partial", name)

    def names(self, kind: str) -> list[str]:
        """What lies in ``files`` or ``partial``."""
        return os.listdir(self._place(kind, ""))

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work`` as one transaction, in the database's thread; it is on the disk when this returns.

        Raises:
            HttpError: 507, the disk is full; nothing of it happened.
        """
        return await asyncio.get_running_loop().run_in_executor(self._db_thread, self._transact, work)

    async def do(self, work: Callable[[], T]) -> T:
        """``work`` on files, in a thread.

        Raises:
            HttpError: 507, the disk is full.
        """
        return await asyncio.get_running_loop().run_in_executor(self._file_threads, self._on_files, work)

    def close(self) -> None:
        """Let go of the folder; a temporary one is removed. Does nothing the second time."""
        self._file_threads.shutdown(wait=True, cancel_futures=True)
        self._db_thread.shutdown(wait=True, cancel_futures=True)
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if not self.lasting and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _place(self, kind: str, name: str) -> Path:
        self._open()
        assert self._folder is not None
        return self._folder / kind / name

    def _on_files(self, work: Callable[[], T]) -> T:
        with told_if_full():
            return work()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._open()
        with told_if_full():
            db.execute("BEGIN IMMEDIATE")
            try:
                value = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return value

    def _open(self) -> sqlite3.Connection:
        with self._opening:
            if self._db is None:
                self._db = self._open_folder()
            return self._db

    def _open_folder(self) -> sqlite3.Connection:
        if self._folder is None:
            self._folder = _temporary_folder()
            log.warning("files and batches end with this process: they are kept in %s; --store-dir keeps", self._folder)
        try:
            for folder in (self._folder, self._folder / "files", self._folder / "partial"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _take_lock(self._folder)
            return _open_database(self._folder / "store.db")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SetupError(f"cannot use --store-dir {self._folder}: {reason}; name a folder to write to") from error
        except sqlite3.Error as error:
            raise SetupError(f"cannot read {self._folder / 'store.db'}: {error}; name another --store-dir") from error


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="tokenmill-store-"))
    except OSError as error:  # a system that is read-only, or a disk that is full
        log.error("no temporary folder for files and batches (%s); give --store-dir", error)
        raise HttpError(
            507,
            "This server has no place to store files; its operator can give it one with --store-dir.",
            code="storage_unavailable",
            headers={"x-should-retry": "false"},
        ) from error


def _take_lock(folder: Path) -> IO[bytes]:
    """Held until the file is closed, or the process ends."""
    lock = private_file(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise SetupError(f"--store-dir {folder} is in use by another server; stop it, or name another folder") from None
    return lock


def _open_database(path: Path) -> sqlite3.Connection:
    private_file(path, os.O_RDWR | os.O_CREAT).close()  # SQLite's other files get the mode of this one
    # Opened where the server is made, used by one thread after that.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        db.close()
        raise SetupError(f"{path} was written by a newer version of tokenmill; update, or name another --store-dir")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.executescript(SCHEMA)
    db.execute(f"PRAGMA user_version = {VERSION}")
    return db


def private_file(path: Path, flags: int) -> IO[bytes]:
    """Open ``path`` unbuffered, for its owner alone."""
    mode = "r+b" if flags & os.O_RDWR else "wb"
    return open(path, mode, buffering=0, opener=lambda name, _: os.open(name, flags | os.O_CLOEXEC, 0o600))


class Draft:
    """New contents on their way into the store: ``write`` often, then ``keep`` or ``drop``. All of it blocks."""

    def __init__(self, store: Store, name: str) -> None:
        self._path = store.partial(name)
        self._file = private_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self.num_bytes = 0

    def write(self, data: bytes | bytearray) -> None:
        write_all(self._file, data)
        self.num_bytes += len(data)

    def keep(self, path: Path) -> None:
        """Contents are on the disk, whole, under ``path``."""
        os.fsync(self._file.fileno())
        self._file.close()
        move(self._path, path)

    def drop(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def write_all(file: IO[bytes], data: bytes | bytearray) -> None:
    """An unbuffered file may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def move(source: Path, target: Path) -> None:
    """Rename, and see that the name is on the disk too."""
    source.rename(target)
    for folder in {source.parent, target.parent}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unix_time() -> int:
    """Now, as OpenAI's objects tell it: whole seconds."""
    return int(time.time())
