"""The server under test: a real process, with keys, started and ended here, and what Linux says of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenmill.bench.soak.wire import Address
from tokenmill.core.errors import SetupError

READY = re.compile(r"ready on http://([\d.]+):(\d+)")
START_S = 180.0
END_S = 60.0
ENGINE = "tokenmill.cli.engine_process"
TENANTS: Mapping[str, tuple[str, ...]] = {
    "lion": ("--weight", "3"),
    "hare": ("--weight", "1"),
    "snail": ("--requests-per-minute", "60", "--max-concurrent", "2"),
    "keeper": ("--admin",),
}
"""Who has a key; the snail has one with limits, the keeper sees the metrics."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the server at one moment."""

    pid: int
    role: str
    """``server``, ``engine`` or ``helper`` (short-lived: tries a grammar, say)."""
    rss_bytes: int
    descriptors: int
    threads: int


class Server:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process, address: Address, keys: Mapping[str, str]) -> None:
        self._process = process
        self.address = address
        self.keys = keys

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def engine_pid(self) -> int | None:
        """Of the isolated engine; None while there is none."""
        return next((process.pid for process in self.processes() if process.role == "engine"), None)

    def processes(self) -> list[Process]:
        """The server and all its descendants."""
        return [found for pid in _tree(self._process.pid) if (found := _look(pid, self._process.pid)) is not None]

    async def stop(self) -> int:
        """SIGTERM, and its exit code; raises ``TimeoutError`` if it does not end."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(END_S):
            return await self._process.wait()

    async def kill(self) -> None:
        """Whatever is left of it."""
        for pid in [*_tree(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()


async def start(command: Sequence[str], folder: Path, model: str, options: Sequence[str]) -> Server:
    """Make keys, start ``command serve model``, wait until it is ready. Its log goes to ``folder/server.log``.

    Raises:
        SetupError: it does not start; with its last words.
    """
    keys = {tenant: await _make_key(folder / "keys.json", tenant, more) for tenant, more in TENANTS.items()}
    (folder / "tmp").mkdir()
    log = folder / "server.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            "serve",
            model,
            *("--port", "0", "--keys", str(folder / "keys.json"), "--store-dir", str(folder / "store")),
            *options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"TMPDIR": str(folder / "tmp")},
        )
    deadline_s = time.monotonic() + START_S
    while (found := READY.search(text := log.read_text(errors="replace"))) is None:
        if process.returncode is not None or time.monotonic() > deadline_s:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise SetupError(f"the server does not start: {' '.join(text.splitlines()[-3:]) or 'no word of it'}")
        await asyncio.sleep(0.1)
    return Server(process, Address(found[1], int(found[2])), keys)


async def _make_key(file: Path, tenant: str, more: Sequence[str]) -> str:
    words = ("-m", "tokenmill", "keys", "create", "--file", str(file), "--tenant", tenant, "--json", *more)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    if process.returncode:
        raise SetupError(f"no key can be made: {error.decode(errors='replace').strip()}")
    return str(json.loads(out)["key"])


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _look(pid: int, server_pid: int) -> Process | None:
    """None: it ended meanwhile."""
    try:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if "VmRSS" not in status:
            return None
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        role = "server" if pid == server_pid else "engine" if ENGINE in command else "helper"
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return Process(pid, role, 1024 * int(status["VmRSS"].split()[0]), descriptors, int(status["Threads"]))
    except OSError:
        return None
