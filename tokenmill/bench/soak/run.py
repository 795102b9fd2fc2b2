"""The run: rounds of load, floods and kills, with a quiet moment after each; then the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.bench.soak import chaos, load, watch
from tokenmill.bench.soak.batches import batch
from tokenmill.bench.soak.canaries import Flock
from tokenmill.bench.soak.judge import Quiet
from tokenmill.bench.soak.process import Server, start
from tokenmill.bench.soak.record import Record
from tokenmill.bench.soak.session import HUNG_S, Session, Weather
from tokenmill.bench.soak.verdict import report
from tokenmill.bench.soak.wire import Connection, Cut
from tokenmill.core.errors import ConfigError
from tokenmill.perf.metrics import summarize

MAX_WAITING = 24
SERVER_OPTIONS = (
    *("--max-seqs", "16", "--max-waiting-requests", str(MAX_WAITING), "--max-context", "1024", "--num-blocks", "384"),
    *("--head-timeout-s", "4", "--body-timeout-s", "4", "--write-stall-s", "5", "--max-stored-responses", "200"),
)
"""Small limits, so that a run of minutes meets all of them: queue, KV pool, timeouts, what is stored."""
ROUND_S = (4.0, 30.0)
"""The shortest and the longest round."""
ROUNDS = 60
FLOOD_SHARE = 0.15
KILL_EVERY = 4
"""Rounds from one kill to the next, and none in the last four tenths of the run, so that one engine lives long."""
KILLS_UNTIL = 0.6
HANG_EVERY = 3
"""Of the kills, every third stops the process instead, as a hang does."""
RECOVERY_S = 30.0
CANARIES = 2
"""Clients that ask nothing but canaries."""
BURST = 24
IDLE_S = (2.0, 90.0)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """The names of the command's options."""

    model: str = "story"
    minutes: float = 30.0
    isolate: bool = False
    clients: int = 6
    misdoers: int = 3
    seed: int = 0
    health_limit_s: float = 0.25
    """A bound for a machine that runs the clients as well."""
    settle_s: float = 60.0
    """Within so long after the last answer nothing may be held any more."""
    command: tuple[str, ...] = (sys.executable, "-m", "tokenmill")
    """What is soaked; ``serve`` and its options follow."""

    def check(self) -> None:
        """Raises ``ConfigError`` for what cannot be."""
        if not self.minutes > 0:
            raise ConfigError(f"--minutes must be above 0, not {self.minutes:g}")


@dataclass(slots=True)
class Soak:
    """A run under way."""

    options: SoakOptions
    server: Server
    tell: Tell
    weather: Weather
    record: Record = field(default_factory=Record)
    moments: list[Quiet] = field(default_factory=list)
    bursts: dict[str, list[float]] = field(default_factory=dict)
    kills: list[dict[str, Any]] = field(default_factory=list)

    def session(self, tenant: str, number: int = 0) -> Session:
        rng = random.Random(f"{self.options.seed}:{tenant}:{number}:{len(self.moments)}")
        key = self.server.keys[tenant]
        return Session(self.server.address, self.options.model, key, self.record, self.weather, rng)


async def soak(options: SoakOptions, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Everything that a result says, but for machine and command; ``result["passed"]`` is the verdict.

    Raises:
        ConfigError: options that cannot be; SetupError: the server does not start.
    """
    options.check()
    with tempfile.TemporaryDirectory(prefix="tokenmill-soak-") as name:
        more = (*SERVER_OPTIONS, *(("--isolate",) if options.isolate else ()))
        server = await start(options.command, Path(name), options.model, more)
        run = Soak(options, server, tell, Weather(lambda: server.alive))
        try:
            health = watch.Health(server.address, run.record, run.weather)
            async with _beside(health.watch()):
                flock = await Flock.take(run.session("lion"))
                await _be_quiet(run)
                await _rounds(run, flock, health)
            await _end(run)
        finally:
            await server.kill()
        log = (Path(name) / "server.log").read_text(errors="replace")
    figures = report(run.record, run.moments, options.health_limit_s, _limits(run))
    return {
        "model": options.model,
        "load": _described(options),
        **figures,
        "canaries": {"exact": flock.exact, "refused": flock.skipped},
        "kills": run.kills,
        "bursts": {name: summarize(seconds) for name, seconds in run.bursts.items()},
        "health_slowest": [{"seconds": s, "at_s": at, "path": path} for s, at, path in reversed(health.slowest)],
        "client": {"loop_lag_s": summarize(health.lags_s)},
        "server_log": {"lines": log.count("\n"), "tracebacks": log.count("Traceback")},
    }


async def _rounds(run: Soak, flock: Flock, health: watch.Health) -> None:
    total_s = 60 * run.options.minutes
    round_s = min(max(total_s / ROUNDS, ROUND_S[0]), ROUND_S[1])
    number, rested = 0, False
    while (begun_s := run.record.now_s) < total_s or not rested:
        kill = run.options.isolate and number % KILL_EVERY == 1 and (begun_s < KILLS_UNTIL * total_s or number == 1)
        await _round(run, flock, health, round_s, kill=kill)
        number += 1
        if not run.server.alive:
            run.record.breach("health", "the server's process has ended")
            return
        if not rested and run.record.now_s > total_s / 2 and number > 1:
            await _rest(run, min(max(total_s / 20, IDLE_S[0]), IDLE_S[1]))
            rested = True
        broken = sum(run.record.num_breaches.values())
        run.tell(
            f"{run.record.now_s / 60:.1f} minutes, {number} rounds: {run.record.num_requests} requests, "
            f"{flock.exact} canaries exact, "
            + (f"{broken} breaches, the last of {run.record.breaches[-1].invariant}" if broken else "nothing wrong")
        )


async def _round(run: Soak, flock: Flock, health: watch.Health, round_s: float, *, kill: bool) -> None:
    """Load with all that goes beside it; ends with the quiet moment."""
    end_s = run.record.now_s + round_s
    options, tenants = run.options, ("lion", "hare", "hare", "snail")

    async def until_end(work: Callable[[Session], Awaitable[None]], session: Session, pause_s: float) -> None:
        while run.record.now_s < end_s and run.server.alive:
            await _guarded(run, work, session)
            await asyncio.sleep(session.rng.random() * pause_s)

    async with asyncio.TaskGroup() as tasks:
        for number in range(options.clients):
            tasks.create_task(until_end(_one_of(load.SCENARIOS), run.session(tenants[number % 4], number), 0.1))
        for number in range(options.misdoers):
            tasks.create_task(until_end(_one_of(chaos.MISDEEDS), run.session("hare", 100 + number), 0.1))
        for number in range(CANARIES):
            tasks.create_task(until_end(flock.ask_next, run.session("lion", 200 + number), 0.1))
        tasks.create_task(_guarded(run, lambda session: batch(session, 14), run.session("hare", 300)))
        flooding_s = run.record.now_s + round_s * FLOOD_SHARE
        tasks.create_task(chaos.flood(run.session("lion", 400), 3 * MAX_WAITING, flooding_s))
        if kill:
            tasks.create_task(_kill(run, health, round_s))
    await _be_quiet(run)


async def _be_quiet(run: Soak) -> None:
    """Nobody asks for anything: look at what the server holds."""
    if run.server.alive:
        try:
            run.moments.append(await watch.quiet(run.server, run.record, run.options.settle_s))
        except (Cut, OSError, TimeoutError) as error:
            run.record.breach("health", f"/metrics: {type(error).__name__} {error}")


async def _guarded(run: Soak, work: Callable[[Session], Awaitable[None]], session: Session) -> None:
    """What a scenario cannot read is a breach, not the end of the run."""
    try:
        async with asyncio.timeout(3 * HUNG_S):
            await work(session)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, TimeoutError) as error:
        run.record.breach("answers", f"an answer that cannot be read: {type(error).__name__}: {error}")


def _one_of(table: Sequence[tuple[Callable[[Session], Awaitable[None]], int]]) -> Callable[[Session], Awaitable[None]]:
    works, weights = zip(*table, strict=True)

    async def one(session: Session) -> None:
        await session.rng.choices(works, weights)[0](session)

    return one


async def _kill(run: Soak, health: watch.Health, round_s: float) -> None:
    """End the engine's process somewhere in the round, and wait until another serves."""
    await asyncio.sleep(random.Random(f"{run.options.seed}:{len(run.kills)}").uniform(0.2, 0.6) * round_s)
    pid = run.server.engine_pid()
    if pid is None:
        run.record.breach("recovery", "there is no engine to kill")
        return
    how = signal.SIGSTOP if len(run.kills) % HANG_EVERY == HANG_EVERY - 1 else signal.SIGKILL
    run.weather.restarting, began_s = True, run.record.now_s
    os.kill(pid, how)
    limit_s = RECOVERY_S * (2 if how is signal.SIGSTOP else 1)
    while run.server.engine_pid() in (pid, None) or not health.ready:
        if run.record.now_s - began_s > 4 * limit_s or not run.server.alive:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(2 * watch.EVERY_S)
    while not health.ready and run.record.now_s - began_s < 4 * limit_s:
        await asyncio.sleep(0.1)
    seconds = run.record.now_s - began_s
    run.weather.restarting, run.weather.restarted_s = False, run.record.now_s
    run.kills.append({"at_s": round(began_s, 2), "signal": how.name, "recovery_s": round(seconds, 2)})
    if seconds > limit_s:
        run.record.breach("recovery", f"{seconds:.1f} s after {how.name}, at most {limit_s:g}")


async def _rest(run: Soak, idle_s: float) -> None:
    """A burst, a rest, a burst, over connections that were kept (SK-07)."""
    connections: list[Connection | None] = [None] * BURST
    for name in ("before", "after"):
        session = run.session("lion", 500)
        run.bursts[name] = list(await asyncio.gather(*(_kept(run, session, connections, i) for i in range(BURST))))
        if name == "before":
            await asyncio.sleep(idle_s)
    for connection in connections:
        if connection is not None:
            connection.close()
    await _be_quiet(run)


async def _kept(run: Soak, session: Session, connections: list[Connection | None], at: int) -> float:
    """One request over a connection that may have been closed meanwhile, which is no error; its seconds."""
    body = b'{"model": "%s", "prompt": "The old %d", "max_tokens": 8}' % (session.model.encode(), at)
    request = session.address.request("POST", "/v1/completions", body, key=session.key)
    began_s = run.record.now_s
    for again in (False, True):
        try:
            async with asyncio.timeout(HUNG_S):
                connection = connections[at] or await Connection.open(session.address)
                answer = await connection.ask(request)
            break
        except Cut as error:
            if again or connections[at] is None:
                run.record.breach("idle", f"the first request after a rest was cut: {error}")
                return run.record.now_s - began_s
            connections[at] = None
        except (OSError, TimeoutError) as error:
            run.record.breach("idle", f"no connection after a rest: {type(error).__name__} {error}")
            return run.record.now_s - began_s
    connections[at] = connection
    run.record.count("burst", "ok" if answer.status == 200 else str(answer.status))
    if answer.status != 200:
        run.record.breach("idle", f"a burst within the capacity was refused: {answer.status} {answer.body[:200]!r}")
    return run.record.now_s - began_s


async def _end(run: Soak) -> None:
    """SIGTERM: it must end by itself, and well."""
    if not run.server.alive:
        return
    try:
        code = await run.server.stop()
    except TimeoutError:
        run.record.breach("shutdown", "the server does not end on SIGTERM")
        return
    if code != 0:
        run.record.breach("shutdown", f"exit code {code} on SIGTERM, with nothing under way")


@asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _limits(run: Soak) -> dict[str, tuple[float, float]]:
    """Single figures with their bounds: name → (worst, limit)."""
    before, after = (summarize(run.bursts.get(name, [])) for name in ("before", "after"))
    if not before or not after:
        return {}
    return {"idle: p99 of the first burst after a rest, s": (after["p99"], max(2 * before["p99"], before["p99"] + 1.0))}


def _described(options: SoakOptions) -> dict[str, Any]:
    return {
        "minutes": options.minutes,
        "isolated": options.isolate,
        "clients": options.clients,
        "misdoers": options.misdoers,
        "flood_clients": 3 * MAX_WAITING,
        "server_options": list(SERVER_OPTIONS),
        "seed": options.seed,
    }
