"""``Access``: what the door found out about whoever sends a request. Everything behind the door asks it, not headers.

The tenant decides with whom a request shares: its place in the fair share, the blocks of the prefix cache, and the
stored objects that it may see. A tenant may have several keys, each with limits of its own within the tenant's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be asked for; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt tokens and the most that may be generated for them, reserved when a request comes."""
    max_concurrent: int | None = None
    """HTTP requests that generate, at the same time."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who a request comes from, and what that allows."""

    tenant: str = "default"
    key_id: str | None = None
    """The public name of the key; None where the server knows no keys by name."""
    weight: float = 1.0
    """Of the tenant, in the fair share."""
    admin: bool = False
    """May see what belongs to everybody: metrics, steps, others' requests."""
    names_tenant: bool = False
    """The body's ``tenant`` is believed: there are no keys that say better."""
    best_priority: int | None = None
    """The smallest ``priority`` that its requests may have (smaller runs earlier); None: any."""
    limits: Limits = Limits()
    """Of the key."""
    tenant_limits: Limits = Limits()
    """Of all the tenant's keys together."""


OPEN = Access(admin=True, names_tenant=True)
"""Everybody's access where the server has no keys, or one that all share."""
