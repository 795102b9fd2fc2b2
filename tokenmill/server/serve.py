"""Runs the app on a socket until it is told to stop, and stops well.

::

    first signal      not ready at once, still live; new requests get 503; running ones finish
    drain timeout     what still runs gets an error, streams an error frame
    second signal     ends now

The listening socket stays open while draining, so that a late client is told to go elsewhere and not merely
refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import time
from collections.abc import Callable, MutableMapping
from types import FrameType
from typing import Any

import uvicorn

from tokenmill.core.errors import SetupError
from tokenmill.engine.service import Service
from tokenmill.server.app import create_app
from tokenmill.server.connection import connections_of
from tokenmill.server.guard import Guard
from tokenmill.server.observe.tracing import check_tracing
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Store
from tokenmill.server.tls import CHECK_PERIOD_S, HANDSHAKE_TIMEOUT_S, certificate_of

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_CUT_OFF = 1
"""Some requests did not finish within the drain timeout."""
EXIT_ENGINE_DIED = 2
EXIT_KILLED = 128 + 15
"""A second signal came."""

FLUSH_S = 3
"""After the last request has ended: how long its bytes may take to leave."""
SEND_BUFFER_BYTES = 256 * 1024
"""Of the kernel, per connection: with the transport's own, what a client that does not read can hold."""
BACKLOG = 2048
ACCEPTS_AT_ONCE = 256
"""Of one turn of the event loop. Few would bound the requests a second: under a flood a turn takes 30 ms, and whoever
waits to be accepted is neither refused nor served."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
EXHAUSTED_S = 0.5
"""After a try that found no descriptor left, further ones wait for so long."""
KEEP_ALIVE_S = 75
LIVENESS_CHECK_S = 1.0
LAST_FRAMES_S = 0.2
"""After the engine's end: how long the error frames may take to be written."""


_NOT_LOGGED = (
    "ASGI callable returned without completing response.",  # a stream that failed and was cut (see ``sse``)
    "Invalid HTTP request received.",  # anybody can send one, as fast as the log can be written
)


class ListeningSocket(socket.socket):
    """Says once that no descriptors are left, and then for a while that nobody is there.

    Asyncio accepts in a row, logs each such failure and sets a timer for each: with hundreds the server would do
    nothing else.
    """

    _exhausted_s = -math.inf

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            now = time.monotonic()
            if now - self._exhausted_s < EXHAUSTED_S:
                raise BlockingIOError(errno.EAGAIN, "no descriptors are left") from error
            self._exhausted_s = now
            raise


def bind(settings: ServerSettings) -> socket.socket:
    """Take the address, before anything slow is begun.

    Raises:
        SetupError: it is taken, not allowed, or not of this machine; or the files for TLS or the
            folder of the store are no good, or tracing is asked for and not installed.
    """
    certificate_of(settings)
    check_tracing(settings.otlp)
    Store(settings.store_dir).close()  # opened for good by ``create_app``
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # By its name: asyncio turns Nagle's algorithm off only where the protocol says TCP. With it on, a token
        # that follows another waits for the client's acknowledgement, 40 ms.
        sock = ListeningSocket(family, kind, protocol)
    except OSError as error:
        raise SetupError(f"cannot listen on {settings.host}: {_reason(error)}") from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise SetupError(_bind_message(settings, error)) from error
    sock.setblocking(False)
    return sock


async def serve(
    service: Service,
    settings: ServerSettings,
    sock: socket.socket,
    *,
    on_ready: Callable[[str], None] = lambda address: None,
    fingerprint: str | None = None,
) -> int:
    """Serve ``service`` on ``sock`` (from ``bind``) until a signal or the engine's death; the exit code.

    The service has been started on this event loop; it is drained here, and closed by whoever made it.
    ``on_ready`` is called once with the address, as ``http://127.0.0.1:8000``.
    """
    return await Server(create_app(service, settings, fingerprint=fingerprint), sock, on_ready).run_until_stopped()


class Server(uvicorn.Server):
    """Uvicorn, with a drain before its shutdown."""

    def __init__(self, app: Guard, sock: socket.socket, on_ready: Callable[[str], None]) -> None:
        self._protocol = connections_of(app.context)
        self._certificate = certificate_of(app.context.settings)
        config = uvicorn.Config(
            app,
            http=self._protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=FLUSH_S,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_worth_logging)
        self.exit_code = EXIT_OK
        self._context = app.context
        self._context.cut = self._cut
        self._socket = sock
        self._on_ready = on_ready
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run_until_stopped(self) -> int:
        """Serve; the process's exit code."""
        self._loop = asyncio.get_running_loop()
        watch = asyncio.create_task(self._watch_engine())
        renew = asyncio.create_task(self._watch_certificate())
        try:
            await self._context.batches.start()
            await self.serve(sockets=[self._socket])
        finally:
            await self._context.batches.stop()
            await self._context.responses.close()
            watch.cancel()
            renew.cancel()
            if self._draining is not None:
                self._draining.cancel()
            self._loop = None
            self._context.close()
        return self.exit_code

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's for a given socket, with a deadline for the handshake of TLS."""
        loop, certificate = asyncio.get_running_loop(), self._certificate

        def connection() -> asyncio.Protocol:
            return self._protocol(self.config, self.server_state, {})

        options: dict[str, Any] = {}
        if certificate is not None:
            options = {"ssl": certificate.context, "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_S}

        try:
            self.servers = [await loop.create_server(connection, sock=self._socket, backlog=ACCEPTS_AT_ONCE, **options)]
            self._socket.listen(BACKLOG)
        except OSError as error:  # another process began to listen between bind and now
            raise SetupError(_bind_message(self._context.settings, error)) from error
        self.started = True
        self._on_ready(address_of(self._socket, tls=certificate is not None))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: drain; at the second one, end at once. May be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._draining is None:
            self._context.draining = True
            self._draining = asyncio.create_task(self._drain())
            return
        self.exit_code = EXIT_KILLED
        self.should_exit = self.force_exit = True
        for connection in self._connections():
            connection.transport.abort()

    async def _drain(self) -> None:
        await self._context.batches.stop()  # what they had in flight is run again by the next process
        if not await self._context.service.drain(self._context.settings.drain_timeout_s):
            self.exit_code = EXIT_CUT_OFF
        self.should_exit = True

    async def _watch_engine(self) -> None:
        """A dead or stuck engine ends the process, once everybody who waits has been told: whoever supervises it
        starts a new one. A slow one may yet come back."""
        while not self._context.service.failed:
            await asyncio.sleep(LIVENESS_CHECK_S)
        log.critical("the engine is %s: the process ends", self._context.service.condition.state)
        self._context.service.abandon()
        await asyncio.sleep(LAST_FRAMES_S)
        self.exit_code = EXIT_ENGINE_DIED
        self._context.draining = self.should_exit = True

    async def _watch_certificate(self) -> None:
        while self._certificate is not None:
            await asyncio.sleep(CHECK_PERIOD_S)
            self._certificate.renew()

    def _connections(self) -> list[Any]:
        """Uvicorn's protocol objects: each has its transport, and the scope of its latest request."""
        return list(self.server_state.connections)

    def _cut(self, scope: MutableMapping[str, Any]) -> None:
        for connection in self._connections():
            if connection.scope is scope:
                connection.transport.abort()


def address_of(sock: socket.socket, *, tls: bool = False) -> str:
    """``http://host:port`` of a bound socket."""
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _bind_message(settings: ServerSettings, error: OSError) -> str:
    place = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"port {settings.port} is in use on {settings.host}: stop what listens there, or choose another --port"
    return f"cannot listen on {place}: {_reason(error)}"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _worth_logging(record: logging.LogRecord) -> bool:
    return record.msg not in _NOT_LOGGED
