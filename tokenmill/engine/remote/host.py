"""The engine's process: makes an engine as it is told, runs it, and reports.

Three threads share one socket: this one reads commands, the engine's thread sends each step's events, and a third
sends a pulse twice a second, which says how the engine's thread moves. A process whose socket closes, or whose parent
dies, ends at once: it holds nothing that anyone could still want.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import Protocol

from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import InvalidRequest, TokenmillError
from tokenmill.core.events import StepEvents
from tokenmill.core.grammar import Grammar
from tokenmill.core.request import Request
from tokenmill.core.step import StepPlan
from tokenmill.engine.async_service import EngineThread, stats_of
from tokenmill.engine.engine import Engine
from tokenmill.engine.faults import fire
from tokenmill.engine.grammar.compiler import Compiled, GrammarCompiler
from tokenmill.engine.remote.wire import (
    HEADER,
    Abort,
    Add,
    Answer,
    Brought,
    Build,
    Close,
    Command,
    Compile,
    Died,
    Explain,
    Loading,
    Problem,
    ProtocolError,
    Pulse,
    Ready,
    Refused,
    Report,
    Stop,
    Taking,
    body_bytes,
    command_of,
    pack,
)
from tokenmill.engine.remote.wire import Observed as ObservedNow
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.watchdog import Motion

log = logging.getLogger(__name__)

PULSE_S = 0.5
OBSERVE_EVERY = 2
"""Pulses from one observation to the next."""

NICENESS = 10
"""Of the engine's process: where processors are short, HTTP comes first (who asks for health, whom to refuse, tokens
that are there already), with nine times the engine's weight. Where there are enough it changes nothing."""

EXIT_OK = 0
EXIT_REFUSED = 3
EXIT_DIED = 2


@dataclass(frozen=True, slots=True)
class Hosted:
    """An engine ready to step, and what the other side must know of it."""

    engine: Engine
    limits: ModelLimits
    fingerprint: str
    grammars: GrammarCompiler
    """The worker's own."""


class Make(Protocol):
    """Builds the engine; raises ``TokenmillError`` if it cannot be had."""

    def __call__(self, config: EngineConfig, progress: LoadingReports, /) -> Hosted: ...


class Line:
    """This process's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, report: Report) -> None:
        """From any thread; waits while the other side does not read."""
        fire("remote.send", report)
        frame = pack(report)
        with self._lock:
            self._sock.sendall(frame)

    def receive(self) -> Command:
        """The next command.

        Raises:
            EOFError: the other side is gone.
            ProtocolError: what came is no command.
        """
        command = command_of(self._read(body_bytes(self._read(HEADER.size))))
        fire("remote.receive", command)
        return command

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._sock.recv(min(count - len(parts), 2**20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


class LoadingReports:
    """Tells the other side how the start goes on (``launch.Progress``)."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def stage(self, text: str) -> None:
        self._line.send(Loading(stage=text))

    def update(self, done: int, total: int) -> None:
        self._line.send(Loading(done=done, total=total))

    def note(self, text: str) -> None:
        self._line.send(Loading(note=text))


def run(sock: socket.socket, parent_pid: int, make: Make) -> int:
    """Be the engine's process until the other side is gone; the exit code."""
    _die_with(parent_pid)
    os.nice(NICENESS)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # for the whole group: the HTTP process drains, and then closes the socket
    line = Line(sock)
    try:
        build = line.receive()
        if not isinstance(build, Build):
            raise ProtocolError("the first message says what to build")
        hosted = make(build.config, LoadingReports(line))
    except TokenmillError as error:
        line.send(Refused(Problem.of(error)))
        return EXIT_REFUSED
    return _Host(line, hosted, build.stuck_after_s).serve()


class _Host:
    """Commands in, reports out."""

    def __init__(self, line: Line, hosted: Hosted, stuck_after_s: float) -> None:
        self._line = line
        self._hosted = hosted
        self._engine = hosted.engine
        self._engine.on_plan = self._announce
        self._kept: dict[str, Compiled] = {}
        self._thread = EngineThread(self._engine, self._post, self._died, stuck_after_s=stuck_after_s)

    def serve(self) -> int:
        self._hosted.grammars.warm_up()
        self._thread.start()
        cache = self._engine.scheduler.cache
        self._line.send(
            Ready(self._hosted.limits, cache.pool.num_blocks, cache.block_size, self._hosted.fingerprint, self._stats())
        )
        threading.Thread(target=self._pulse, name="tokenmill-pulse", daemon=True).start()
        try:
            while not isinstance(command := self._line.receive(), Close):
                self._obey(command)
        except (EOFError, OSError):
            return EXIT_OK
        except ProtocolError:
            log.exception("the connection to the HTTP process is broken")
            return EXIT_DIED
        self._thread.close()
        return EXIT_OK

    def _obey(self, command: Command) -> None:
        if isinstance(command, Add):
            self._add(command.request)
        elif isinstance(command, Abort):
            self._thread.command(lambda engine: engine.abort(command.request_id))
        elif isinstance(command, Stop):
            self._thread.command(lambda engine: engine.stop(command.request_id, command.index))
        elif isinstance(command, Explain):
            account = self._engine.scheduler.explain(command.request_id, self._engine.clock.now())
            self._line.send(Answer(command.number, account))
        elif isinstance(command, Compile):
            threading.Thread(target=self._compile, args=(command,), name="compile", daemon=True).start()
        else:
            raise ProtocolError(f"{type(command).__name__} is out of place")

    def _add(self, request: Request) -> None:
        grammar = request.params.grammar
        if grammar is None:
            self._thread.add(request)
            return
        found = self._hosted.grammars.find(grammar)
        if found is not None:
            self._kept[request.id] = found
            self._thread.add(request)
        else:  # another engine compiled it, before this one was there
            threading.Thread(target=self._prepare, args=(request, grammar), name="prepare", daemon=True).start()

    def _prepare(self, request: Request, grammar: Grammar) -> None:
        """Compile a grammar neither in the reader's thread nor in a step."""
        try:
            self._kept[request.id] = self._hosted.grammars.compile(grammar)
        except TokenmillError:
            log.exception("the grammar of request %s, compiled before, cannot be now", request.id)
        self._thread.add(request)  # if it has no grammar, it fails alone

    def _compile(self, command: Compile) -> None:
        """In a thread of its own: the next command must not wait for it."""
        problem = None
        try:
            self._hosted.grammars.compile(command.grammar, param=command.param, tenant=command.tenant)
        except TokenmillError as error:
            problem = Problem.of(error)
        except Exception:
            log.exception("a grammar could not be compiled")
            problem = Problem.of(InvalidRequest("the grammar could not be compiled", param=command.param))
        self._line.send(Answer(command.number, problem=problem))

    def _stats(self) -> dict[str, float]:
        grammars = {f"grammar_{name}": value for name, value in self._hosted.grammars.stats().items()}
        return {**stats_of(self._engine), **grammars}

    # ---- other threads -----------------------------------------------------------------------------

    def _announce(self, plan: StepPlan) -> None:
        """Before a step: whose first it is. Should the process not survive it, the other side knows whom to suspect."""
        if plan.new:
            self._line.send(Taking(self._engine.scheduler.request_ids(plan)))

    def _post(self, events: StepEvents) -> None:
        for record in events.finished:
            self._kept.pop(record.request_id, None)
        self._line.send(Brought.of(events, self._stats()))

    def _died(self, error: BaseException) -> None:
        try:
            self._line.send(Died())
        finally:
            os._exit(EXIT_DIED)

    def _pulse(self) -> None:
        telemetry = self._engine.telemetry
        beat = threading.Event()
        for number in range(2**62):
            state, _ = self._thread.judge()
            motion: Motion = "slow" if state == "slow" else "stuck" if state == "stuck" else "moving"
            observed = None
            if telemetry is not None and number % OBSERVE_EVERY == 0:
                observed = ObservedNow.of(telemetry.observation(self._engine.clock.now()))
            try:
                self._line.send(Pulse(motion, self._stats(), observed))
            except OSError:
                return
            beat.wait(PULSE_S)


def _die_with(parent_pid: int) -> None:
    """Have the kernel end this process when its parent ends, however that happens."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it was too late for that
        os._exit(EXIT_OK)
