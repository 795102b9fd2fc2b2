"""The log of refusals: a flood of them must not become a flood of lines."""

from __future__ import annotations

import asyncio
import logging

from tokenmill.server.observe.logs import log_request
from tokenmill.server.observe.record import RequestRecord

_requests = logging.getLogger("tokenmill.request")

REFUSALS_PER_S = 10
"""Lines for requests that were refused before they were read."""


class RefusalLog:
    """At most ``REFUSALS_PER_S`` lines a second for refusals; the others are counted, and told by one line.

    A line takes as long as the whole refusal besides. On an event loop only.
    """

    def __init__(self) -> None:
        self._num_lines = 0
        self._num_others = 0
        self._timer: asyncio.TimerHandle | None = None

    def log(self, record: RequestRecord, *, details: bool) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1.0, self._second_over)
        if self._num_lines < REFUSALS_PER_S:
            self._num_lines += 1
            log_request(record, details=details)
        else:
            self._num_others += 1

    def _second_over(self) -> None:
        if self._num_others:
            _requests.info("%d more requests were refused within a second", self._num_others)
        self._timer, self._num_lines, self._num_others = None, 0, 0
