"""One user of the server: asks, and judges every answer by the contract before anybody looks into it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenmill.bench.soak import contract
from tokenmill.bench.soak.record import Record
from tokenmill.bench.soak.wire import Address, Answer, Cut, ask

HUNG_S = 120.0
"""A request that has no whole answer by then hangs."""
GRACE_S = 2.0


@dataclass(slots=True)
class Weather:
    """What the whole run knows of the server's state."""

    alive: Callable[[], bool] = lambda: True
    """Whether its process is there."""
    restarting: bool = False
    restarted_s: float = float("-inf")
    """When the last restart was over, on the record's clock."""
    numbers: int = 0

    def excuses(self, began_s: float) -> bool:
        """Whether a request that began then may have met a restart."""
        return self.restarting or began_s <= self.restarted_s + GRACE_S

    def new_number(self) -> int:
        """Never the same one: for names that nobody has had before."""
        self.numbers += 1
        return self.numbers


@dataclass(slots=True)
class Session:
    """A key, and a source of chance."""

    address: Address
    model: str
    key: str
    record: Record
    weather: Weather
    rng: random.Random = field(default_factory=random.Random)

    async def ask(
        self,
        kind: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        content_type: str = "application/json",
    ) -> Answer | None:
        """The answer, if it is a 200 that has all its words; everything else is judged and counted here."""
        began_s = self.record.now_s
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        request = self.address.request(
            method, path, data, key=self.key, kind=content_type, headers={"Connection": "close"}
        )
        try:
            answer = await ask(self.address, request, timeout_s=HUNG_S)
        except TimeoutError:
            self._lost(kind, "hung", f"no answer to {method} {path} in {HUNG_S:g} s")
            return None
        except Cut as cut:
            self._lost(kind, "cut", f"{method} {path}: {cut}")
            return None
        restarting = self.weather.excuses(began_s)
        if answer.status != 200:
            self.record.count(kind, contract.refusal(self.record, kind, answer, restarting=restarting))
            return None
        if (error := contract.error_in_stream(answer)) is not None:
            outcome = contract.judge_code(self.record, kind, 503, error, restarting=restarting)
            self.record.count(kind, f"in the stream: {outcome}")
            return None
        if answer.cut:
            self._lost(kind, "cut", f"{method} {path}: cut after {len(answer.body)} bytes without an error")
            return None
        self.record.count(kind, "ok")
        self.record.took(kind, answer.seconds)
        return answer

    def wrong(self, kind: str, what: object) -> None:
        """A whole answer that is not what was asked for."""
        self.record.breach("answers", f"{kind}: {what}")

    def name(self, what: str) -> str:
        """A name that nobody has had before."""
        return f"{what}-{self.weather.new_number()}"

    def words(self, low: int, high: int) -> str:
        """So many words, at random."""
        return " ".join(self.rng.choice(WORDS) for _ in range(self.rng.randint(low, high)))

    def _lost(self, kind: str, outcome: str, what: str) -> None:
        self.record.count(kind, outcome)
        self.record.breach("answers", f"{kind}: {what}")


WORDS: tuple[str, ...] = (
    *("the", "and", "fox", "girl", "dog", "bird", "house", "river", "bread", "song", "lamp", "little", "old", "merry"),
    *("lost", "found", "went", "saw", "sang", "ran", "asked", "said", "under", "by", "once", "night", "moon", "wind"),
)
