"""The door: from a request's ``Authorization`` header to who is asking, in constant time.

Three kinds of server. With no key everybody comes in. With one key (``--api-key-file``) whoever has it does, and is as
good as everybody else. With a file of keys (``--keys``) each key has its tenant and its limits, and keys come,
go and expire while the server runs: the file is looked at once a second and read when it has changed. A file that is
broken, half gone or unreadable changes nothing but the log.

Whatever is sent, one hash is computed and one comparison made: of an unknown key against a hash that nothing has.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tokenmill.core.errors import ConfigError
from tokenmill.server.access.identity import OPEN, Access
from tokenmill.server.access.keys import KeyRecord, key_hash, read_keys
from tokenmill.server.errors import HttpError

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often the file of keys is looked at: a revoked key is refused after about so long."""


class _Entry(NamedTuple):
    sha256: bytes
    access: Access
    expires_s: float
    disabled: bool


class Door:
    """Knows the keys.

    Raises:
        ConfigError: the file of keys cannot be read, or is wrong.
    """

    def __init__(
        self, api_key: str | None = None, keys: Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._shared = None if api_key is None else key_hash(api_key.encode())
        self._nobody = secrets.token_bytes(32)
        self._path = keys
        self._entries: dict[bytes, _Entry] = {}
        self._stamp: tuple[int, ...] | None = None
        self._next_look_s = 0.0
        self._reading: threading.Thread | None = None
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._entries = _read(self._path)

    @property
    def knows_tenants(self) -> bool:
        """Keys say whose a request is."""
        return self._path is not None

    def access(self, headers: Iterable[tuple[bytes, bytes]]) -> Access:
        """Who sends these headers.

        Raises:
            HttpError: 401, the key is missing, wrong, expired or disabled.
        """
        if self._shared is None and self._path is None:
            return OPEN
        values = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        key = key.strip()
        if self._path is None:
            found = _Entry(self._shared or self._nobody, OPEN, float("inf"), disabled=False)
        else:
            self._look()
            found = self._entries.get(_id_of(key)) or _Entry(self._nobody, OPEN, float("inf"), disabled=False)
        if not hmac.compare_digest(key_hash(key), found.sha256) or scheme.lower() != b"bearer":
            raise _refusal("The API key is missing or wrong; send it as 'Authorization: Bearer <key>'.")
        if found.disabled:
            raise _refusal("This API key has been revoked; ask for a new one.")
        if found.expires_s <= self._clock():
            raise _refusal("This API key has expired; ask for a new one.")
        return found.access

    def _look(self) -> None:
        """Once in a while: has the file changed? Then read it, in a thread: it may be large."""
        now = time.monotonic()
        if now < self._next_look_s or (self._reading is not None and self._reading.is_alive()):
            return
        self._next_look_s = now + POLL_S
        assert self._path is not None
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            self._reading = threading.Thread(target=self.read_again, name="keys", daemon=True)
            self._reading.start()

    def read_again(self) -> None:
        """Take the file's keys from now on; a broken file leaves the old ones in force."""
        assert self._path is not None
        try:
            self._entries = _read(self._path)
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error.message)
        else:
            log.info("read %d keys from %s", len(self._entries), self._path)


def _read(path: Path) -> dict[bytes, _Entry]:
    book = read_keys(path)
    return {record.id.encode(): _entry(record, book.access(record)) for record in book.keys}


def _entry(record: KeyRecord, access: Access) -> _Entry:
    expires_s = float("inf") if record.expires is None else record.expires.timestamp()
    return _Entry(bytes.fromhex(record.sha256), access, expires_s, record.disabled)


def _id_of(key: bytes) -> bytes:
    """The public part of ``tm-<id>-<secret>``; of anything else, nothing that any key has."""
    parts = key.split(b"-", 2)
    return parts[1] if len(parts) == 3 else b""


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _refusal(message: str) -> HttpError:
    return HttpError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
