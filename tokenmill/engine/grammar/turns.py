"""``Turns``: what waits, and whose is next: tenants take turns, and each one's own come in order.

Who asks for many new grammars waits behind his own, not others behind him. Of the places, too, each who is here has an
equal share: where all are taken, one with less than that is still let in. So with tenants ``1, 2, …, n`` arriving one
after the other at a queue of ``m`` places that was full each time, at most ``m · (1 + 1/2 + … + 1/n)`` wait.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """
    Args:
        places: how many may be under way, waiting or taken, before shares are asked about.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._under_way = Counter[str]()

    def has_room(self, tenant: str) -> bool:
        own = self._under_way[tenant]
        num_tenants = len(self._under_way) + (own == 0)
        return self._under_way.total() < self._places or own < self._places // num_tenants

    def put(self, tenant: str, item: T) -> None:
        self._under_way[tenant] += 1
        self._waiting.setdefault(tenant, deque()).append(item)

    def take(self) -> tuple[str, T]:
        """Whose is next, and what; ``done`` must follow. One must be waiting."""
        tenant, own = self._waiting.popitem(last=False)
        item = own.popleft()
        if own:
            self._waiting[tenant] = own  # behind all others
        return tenant, item

    def done(self, tenant: str) -> None:
        self._under_way[tenant] -= 1
        if not self._under_way[tenant]:
            del self._under_way[tenant]
