"""By which names this server may be called.

A page in a browser can reach a server on its user's own machine by giving its own name that machine's address (DNS
rebinding): to the browser both are one site, and no cross-origin rule applies. The ``Host`` header still holds the
page's name. So a server that anybody on the machine may use, without a key and on a loopback address, answers to names
that no stranger can own: addresses, names without a dot, and ``localhost``. Otherwise every name is good, unless
``allowed_hosts`` lists them.

Nothing else is ever decided by this header: addresses are compared by ``scope["path"]``.
"""

from __future__ import annotations

import ipaddress

from starlette.types import Scope

from tokenmill.server.errors import HttpError
from tokenmill.server.settings import ServerSettings


class Hosts:
    """Checks the ``Host`` of requests."""

    def __init__(self, settings: ServerSettings, *, has_keys: bool) -> None:
        self._allowed = frozenset(name.lower() for name in settings.allowed_hosts)
        self._only_local = not self._allowed and not has_keys and _is_loopback(settings.host)

    def check(self, scope: Scope) -> None:
        """Raise ``HttpError`` 421 for a name that is not this server's."""
        if not self._allowed and not self._only_local:
            return
        given = b"".join(value for name, value in scope["headers"] if name == b"host").decode("latin-1")
        name = _without_port(given.lower())
        if not (name in self._allowed if self._allowed else _is_local(name)):
            raise HttpError(
                421,
                "This server is not called that way: use one of its own names, or start it with --allowed-hosts.",
                code="unknown_host",
            )


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_local(name: str) -> bool:
    return "." not in name or name.endswith(".localhost") or _address(name) is not None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
