"""``tokenmill keys``: the file of keys that ``serve --keys`` reads.

A key is made here and nowhere else, and shown once: on standard output alone, so that it can be piped to where it
belongs and stands in no list of processes and no log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.output import note, print_json, print_table
from tokenmill.core.errors import ConfigError

UNIT_S = {"m": 60, "h": 3600, "d": 86400}


@click.group()
def keys() -> None:
    """Make, list, limit and revoke the keys of `tokenmill serve --keys FILE`."""


def file_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--file", "path", type=click.Path(path_type=Path), required=True, help="The file of keys.")(
        command
    )


@keys.command()
@file_option
@click.option("--tenant", required=True, help="Whose key it is: fair share, cached prompts, stored objects.")
@click.option("--weight", type=float, help="Of the tenant, in the fair share; 1 if never given.")
@click.option("--requests-per-minute", type=int, help="Most requests a minute with this key.")
@click.option("--tokens-per-minute", type=int, help="Most prompt and generated tokens a minute with this key.")
@click.option("--max-concurrent", type=int, help="Most requests under way at one time with this key.")
@click.option("--best-priority", type=int, default=0, show_default=True, help="Smallest priority it may ask for.")
@click.option("--expires", help="After so long (30d, 12h, 45m), or at a time (2027-01-31T00:00:00Z).")
@click.option("--admin", is_flag=True, help="It may see metrics, steps and everybody's requests.")
@click.option("--note", "text", default="", help="Whatever tells you later whose it is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def create(path: Path, weight: float | None, expires: str | None, text: str, as_json: bool, **fields: Any) -> None:
    """Add a key; it is printed once and kept nowhere."""
    from tokenmill.server.access.keys import add_key, new_key, utc_now

    until = None if expires is None else _moment(expires, utc_now())
    record, key = new_key(expires=until, note=text, **fields)
    add_key(path, record, weight)
    if as_json:
        print_json({"id": record.id, "key": key, "tenant": record.tenant, "expires": record.expires})
        return
    note(f"key {record.id} of tenant {record.tenant} is in {path}; this is the only time that it is shown:")
    print(key)


@keys.command("list")
@file_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def list_keys(path: Path, as_json: bool) -> None:
    """Show every key's id, tenant, limits and state."""
    from tokenmill.server.access.keys import read_keys, utc_now

    book, now = read_keys(path), utc_now()
    if as_json:
        records = [{**r.model_dump(mode="json", exclude={"sha256"}), "state": r.state(now)} for r in book.keys]
        tenants = {name: tenant.model_dump(mode="json") for name, tenant in book.tenants.items()}
        print_json({"keys": records, "tenants": tenants})
        return
    rows: list[tuple[object, ...]] = [
        ("id", "tenant", "weight", "requests/min", "tokens/min", "at a time", "state", "expires", "note")
    ]
    for record in book.keys:
        tenant = book.tenants.get(record.tenant)
        limits = (record.requests_per_minute, record.tokens_per_minute, record.max_concurrent)
        rows.append(
            (
                record.id,
                record.tenant,
                f"{tenant.weight if tenant else 1:g}",
                *("–" if limit is None else limit for limit in limits),
                record.state(now) + (", admin" if record.admin else ""),
                "never" if record.expires is None else f"{record.expires:%Y-%m-%d %H:%M}",
                record.note,
            )
        )
    print_table(rows, right=(2, 3, 4, 5))


@keys.command()
@file_option
@click.argument("name")
@click.option("--weight", type=float, help="In the fair share.")
@click.option("--requests-per-minute", type=int, help="Most requests a minute with all its keys; 0: no limit.")
@click.option("--tokens-per-minute", type=int, help="Most prompt and generated tokens a minute; 0: no limit.")
@click.option("--max-concurrent", type=int, help="Most requests under way at one time; 0: no limit.")
def tenant(path: Path, name: str, **wishes: Any) -> None:
    """Set weight and limits of a tenant, over all its keys."""
    from tokenmill.server.access.keys import set_tenant

    found = set_tenant(path, name, {field: value for field, value in wishes.items() if value is not None})
    limits = {field: value for field, value in found.model_dump().items() if value is not None}
    note(f"tenant {name}: " + ", ".join(f"{field.replace('_', ' ')} {value:g}" for field, value in limits.items()))


@keys.command()
@file_option
@click.argument("key_id")
def revoke(path: Path, key_id: str) -> None:
    """Disable the key with KEY_ID; running servers refuse it within about a second."""
    from tokenmill.server.access.keys import revoke_key

    record = revoke_key(path, key_id)
    note(f"key {record.id} of tenant {record.tenant} is disabled")


def _moment(text: str, now: datetime) -> datetime:
    """``30d`` from now, or a time."""
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if match is not None:
        return now + timedelta(seconds=int(match[1]) * UNIT_S[match[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--expires {text!r} is neither a time such as 30d, 12h or 45m nor a date") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
