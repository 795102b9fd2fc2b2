"""One engine process, seen from the HTTP process: started, spoken to, ended.

The socket pair is made here and its other end handed down by inheritance: nothing listens, in no folder lies a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Sequence

from tokenmill.engine.faults import fire
from tokenmill.engine.remote.wire import (
    HEADER,
    Build,
    Command,
    Loading,
    ProtocolError,
    Ready,
    Refused,
    Report,
    body_bytes,
    pack,
    report_of,
)

START_SILENCE_S = 600.0
"""A start that says nothing for this long has failed."""
END_S = 10.0
"""How long a process that was told to end may take."""

Tell = Callable[[Loading], None]


class _Line(asyncio.Protocol):
    """Our end of the socket pair: bytes become reports as they come, and wake whoever waits once for all of them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reports: deque[Report] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while len(self._buffer) >= HEADER.size:
                end = HEADER.size + body_bytes(bytes(self._buffer[: HEADER.size]))
                if len(self._buffer) < end:
                    break
                report = report_of(bytes(self._buffer[HEADER.size : end]))
                fire("remote.receive", report)
                self._reports.append(report)
                del self._buffer[:end]
        except (ProtocolError, OSError) as error:
            self._end(error)
            return
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or EOFError("the connection was closed"))

    async def next(self) -> Report:
        """The next report; raises what ended the connection once all that came before has been taken."""
        while not self._reports:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._reports.popleft()

    def _end(self, error: BaseException) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Child:
    """A process with a ready engine; made by ``start``."""

    def __init__(self, process: subprocess.Popen[bytes], line: _Line, transport: asyncio.Transport) -> None:
        self.pid = process.pid
        self._process = process
        self._line = line
        self._transport = transport

    @classmethod
    async def start(cls, argv: Sequence[str], build: Build, tell: Tell = lambda loading: None) -> tuple[Child, Ready]:
        """Start a process and have it build an engine.

        Args:
            argv: its command, to which the number of its socket and this process's id are added.
            tell: called with how the start goes on.

        Raises:
            SetupError, NotSupported: what the engine's process says.
            ProtocolError, EOFError, OSError: it ended, or is not what it should be.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*argv, str(theirs.fileno()), str(os.getpid())]
            # In this thread, which lives as long as the process: the kernel ends the child with the thread.
            process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        transport, line = await asyncio.get_running_loop().create_connection(_Line, sock=ours)
        child = cls(process, line, transport)
        try:
            child.send(build)
            return child, await child._until_ready(tell)
        except BaseException:
            await child.kill()
            raise

    async def _until_ready(self, tell: Tell) -> Ready:
        while True:
            async with asyncio.timeout(START_SILENCE_S):
                report = await self._line.next()
            if isinstance(report, Ready):
                return report
            if isinstance(report, Refused):
                raise report.problem.error()
            if not isinstance(report, Loading):
                raise ProtocolError(f"{type(report).__name__} comes before the engine is ready")
            tell(report)

    def send(self, command: Command) -> None:
        """Does not wait; what is sent to a process that is gone is lost."""
        fire("remote.send", command)
        if not self._transport.is_closing():
            self._transport.write(pack(command))

    async def receive(self) -> Report:
        """The next report.

        Raises:
            EOFError, OSError: the process is gone.
            ProtocolError: what came is no report.
        """
        return await self._line.next()

    def fence(self) -> None:
        """Take the process's life, at once: nothing that it might still do counts."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def kill(self) -> int:
        """End the process and the connection; its exit status, negative for a signal."""
        self._transport.close()
        self.fence()
        return await asyncio.to_thread(self._process.wait)

    async def died(self) -> int:
        """The socket has closed: wait for the process to be gone, and help it if need be; its exit status."""
        try:
            return await asyncio.to_thread(self._process.wait, 1.0)
        except subprocess.TimeoutExpired:
            return await self.kill()
        finally:
            self._transport.close()

    async def end(self) -> None:
        """Wait until the process, told to end, has done so."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, END_S)
        await self.kill()
