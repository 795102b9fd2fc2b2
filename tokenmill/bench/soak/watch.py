"""Those who only look: health, asked ten times a second, and what the server says of itself at quiet moments."""

from __future__ import annotations

import asyncio
import time

from tokenmill.bench.scrape import parse_metrics
from tokenmill.bench.soak.judge import Quiet
from tokenmill.bench.soak.process import Server
from tokenmill.bench.soak.record import Record
from tokenmill.bench.soak.session import Weather
from tokenmill.bench.soak.wire import Address, Connection, Cut

EVERY_S = 0.1
NUM_SLOWEST = 20
HEALTH_S = 10.0
"""An answer that takes longer is none."""
WANTED = frozenset(
    f"tokenmill_{name}"
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_background_waiting",
        "grammar_compilations_waiting",
        "kv_blocks",
        "kv_blocks_free",
        "kv_blocks_cached",
    )
)


class Health:
    """Asks ``/health/live`` and ``/health/ready`` in turn, on one connection, for as long as it runs."""

    def __init__(self, address: Address, record: Record, weather: Weather) -> None:
        self._address, self._record, self._weather = address, record, weather
        self.ready = True
        self.slowest: list[tuple[float, float, str]] = []
        """(seconds, moment, path) of the slowest answers."""
        self.lags_s: list[float] = []
        """How late this program's own event loop was; what it adds to every figure."""

    async def watch(self) -> None:
        connection: Connection | None = None
        while True:
            for path in ("/health/live", "/health/ready"):
                began_s = self._record.now_s
                try:
                    async with asyncio.timeout(HEALTH_S):
                        connection = connection or await Connection.open(self._address)
                        answer = await connection.ask(self._address.request("GET", path))
                except (OSError, Cut, TimeoutError) as error:
                    self._record.breach("health", f"{path}: {type(error).__name__} {error}")
                    connection = None
                else:
                    self._record.took(path, answer.seconds)
                    self.slowest = sorted([*self.slowest, (answer.seconds, round(began_s, 2), path)])[-NUM_SLOWEST:]
                    self._look(path, answer.status, answer.body, began_s)
                asked_s = time.perf_counter()
                await asyncio.sleep(EVERY_S)
                self.lags_s.append(time.perf_counter() - asked_s - EVERY_S)

    def _look(self, path: str, status: int, body: bytes, began_s: float) -> None:
        self._record.count(path, str(status))
        if path == "/health/ready":
            self.ready = status == 200
        if status == 200 or (path == "/health/ready" and self._weather.excuses(began_s)):
            return
        if path == "/health/live" or b'"slow"' not in body:
            self._record.breach("health", f"{path}: {status} {body[:200]!r}")


async def metrics(server: Server) -> str:
    """The page; raises ``Cut``, ``OSError`` or ``TimeoutError``."""
    async with asyncio.timeout(HEALTH_S):
        connection = await Connection.open(server.address)
        try:
            request = server.address.request("GET", "/metrics", key=server.keys["keeper"])
            return (await connection.ask(request)).body.decode()
        finally:
            connection.close()


async def quiet(server: Server, record: Record, settle_s: float) -> Quiet:
    """Wait until the server holds nothing, and look at its processes; a breach if it holds something for longer."""
    deadline_s = time.perf_counter() + settle_s
    while True:
        page = await metrics(server)
        held = held_by(parse_metrics(page, WANTED))
        if not held:
            break
        if time.perf_counter() > deadline_s:
            record.breach(
                "blocks", f"held though nobody asks for anything, {settle_s:g} s after the last answer: {held}"
            )
            break
        await asyncio.sleep(0.25)
    await asyncio.sleep(0.5)  # short-lived children end, collections run
    series = sum(not line.startswith("#") for line in page.splitlines())
    return Quiet(record.now_s, record.num_requests, tuple(server.processes()), series)


def held_by(found: dict[str, float]) -> dict[str, float]:
    """What is not as in an unused server."""
    missing = WANTED - set(found)
    if missing:
        return dict.fromkeys(missing, float("nan"))
    number = {name.removeprefix("tokenmill_"): value for name, value in found.items()}
    blocks = number.pop("kv_blocks") - number.pop("kv_blocks_free") - number.pop("kv_blocks_cached")
    return {name: value for name, value in (number | {"kv_blocks_held": blocks}).items() if value}
