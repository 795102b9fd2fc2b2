"""The file of keys: what is in it, and how it is changed without ever being seen half written.

A key is ``tm-<id>-<secret>``. The id is public: it finds the entry. The secret has 256 random bits, so its SHA-256 is
kept instead of it: whoever reads the file cannot guess a key of that size, however fast the hash; slow hashes (bcrypt,
Argon2) are for what people make up, and would cost every request a tenth of a second. Comparing hashes in constant
time tells nothing about the one that is looked for.

::

    {"keys": [{"id": "0f3a…", "sha256": "…", "tenant": "acme", "created": "2026-11-21T18:00:00Z", "expires": null}],
     "tenants": {"acme": {"weight": 3.0, "tokens_per_minute": 100000}}}

Changes are written to a file beside it and renamed over it, under a lock on the folder: a reader sees the old
file or the new one, and two writers do not undo each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenmill.core.errors import ConfigError
from tokenmill.server.access.identity import Access, Limits

PREFIX = "tm"
ID_BYTES = 6
SECRET_BYTES = 32
MAX_FILE_BYTES = 64 * 2**20

Count = Annotated[int, Field(ge=1, le=10**12)]
TenantName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:=+~-]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class LimitFields(_Strict):
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent: Count | None = None

    def limits(self) -> Limits:
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.max_concurrent)


class KeyRecord(LimitFields):
    """One key as it is kept."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the whole key, in hexadecimal digits."""
    tenant: TenantName
    created: AwareDatetime
    expires: AwareDatetime | None = None
    disabled: bool = False
    admin: bool = False
    """May see metrics, steps and every request."""
    best_priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0
    """The smallest ``priority`` that its requests may have; smaller runs earlier."""
    note: Annotated[str, Field(max_length=256)] = ""

    def state(self, now: datetime) -> str:
        if self.disabled:
            return "disabled"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class TenantRecord(LimitFields):
    """What holds for all keys of a tenant together."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0


class KeyBook(_Strict):
    """The whole file."""

    keys: list[KeyRecord] = []
    tenants: dict[TenantName, TenantRecord] = {}

    @model_validator(mode="after")
    def _ids_are_unique(self) -> KeyBook:
        if len({record.id for record in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same id")
        return self

    def access(self, record: KeyRecord) -> Access:
        """What a key of this file allows."""
        tenant = self.tenants.get(record.tenant, TenantRecord())
        return Access(
            tenant=record.tenant,
            key_id=record.id,
            weight=tenant.weight,
            admin=record.admin,
            best_priority=record.best_priority,
            limits=record.limits(),
            tenant_limits=tenant.limits(),
        )


def key_hash(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> KeyBook:
    """The file's keys.

    Raises:
        ConfigError: it cannot be read, is not such a file, or others may write it; names the field.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size > MAX_FILE_BYTES:
                raise ConfigError(f"the key file {path} is larger than {MAX_FILE_BYTES} bytes")
            if status.st_mode & 0o002:
                raise ConfigError(f"the key file {path} may be written by everybody: chmod 600 it")
            data = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from error
    try:
        return KeyBook.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(f"the key file {path} is wrong at {where}: {first['msg']}") from None


def add_key(path: Path, record: KeyRecord, weight: float | None = None) -> None:
    """Add ``record`` to the file (made if absent, for its owner's eyes only), and set its tenant's weight if given."""
    with _changing(path) as book:
        book.keys.append(record)
        if weight is not None:
            _set_tenant(book, record.tenant, {"weight": weight})


def set_tenant(path: Path, name: str, wishes: Mapping[str, float | int]) -> TenantRecord:
    """Set fields of a tenant, whose keys need not exist yet; a limit of 0 is none."""
    with _changing(path) as book:
        _set_tenant(book, name, {field: value or None for field, value in wishes.items()})
    return read_keys(path).tenants[name]


def _set_tenant(book: KeyBook, name: str, fields: Mapping[str, float | int | None]) -> None:
    tenant = book.tenants.get(name, TenantRecord())
    book.tenants[name] = tenant.model_copy(update=dict(fields))


def new_key(**fields: Any) -> tuple[KeyRecord, str]:
    """A key that nobody has had before, and its record with these fields.

    Raises:
        ConfigError: a field is wrong; names it.
    """
    key_id = secrets.token_hex(ID_BYTES)
    key = f"{PREFIX}-{key_id}-{secrets.token_urlsafe(SECRET_BYTES)}"
    with _naming_fields():
        record = KeyRecord(id=key_id, sha256=key_hash(key.encode()).hex(), created=utc_now(), **fields)
    return record, key


def revoke_key(path: Path, key_id: str) -> KeyRecord:
    """Disable a key; it stays in the file, so that it is known whose it was.

    Raises:
        ConfigError: there is no such key.
    """
    with _changing(path, must_exist=True) as book:
        for record in book.keys:
            if record.id == key_id:
                record.disabled = True
                return record
        raise ConfigError(f"the key file {path} has no key {key_id!r}; `tokenmill keys list` shows the ids")


@contextmanager
def _changing(path: Path, *, must_exist: bool = False) -> Iterator[KeyBook]:
    """The file's content, to be changed in place; written when the ``with`` ends well."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"cannot write into {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        book = read_keys(path) if must_exist or path.exists() else KeyBook()
        yield book
        with _naming_fields():
            book = KeyBook.model_validate(book.model_dump())
        _replace(path, book.model_dump_json(indent=2).encode() + b"\n")
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _naming_fields() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"{first['loc'][-1] if first['loc'] else 'keys'}: {first['msg']}") from None


def _replace(path: Path, data: bytes) -> None:
    """All of the new content or all of the old, whenever the machine stops; readable by its owner only."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def utc_now() -> datetime:
    return datetime.now(UTC)
