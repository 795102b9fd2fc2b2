"""Named injection points: where a test may make this program fail, and how.

The code calls ``fire("worker.step")`` at places where real machines fail: a step, a sampler, a socket, a disk.
Nothing is armed in production, and then a call is one look at an empty list. A test arms faults in its own process
with ``armed``, and those of a process that it starts with the environment variable ``TOKENMILL_FAULTS``::

    TOKENMILL_FAULTS='[{"point": "worker.step", "action": "kill", "after": 3, "token": 777}]'

No request can arm one: requests have no way to the environment, and there is no endpoint. Points in use::

    worker.prepare   a sequence becomes known to the worker       kv.alloc          blocks are taken from the pool
    worker.step      the model is about to run over some rows     executor.submit   a plan goes to the executor
    worker.sample    tokens are about to be drawn                 engine.add        a request enters the scheduler
    worker.logits    logits are there, and may be changed         text.detokenise   a choice's tokens become text
    remote.send      a message to the other process               text.tokenise     a prompt becomes tokens
    remote.receive   a message from the other process             kv.lookup         the prefix cache is asked
    journal.write    a record goes to the journal                 grammar.compile   a grammar is about to be compiled
    grammar.advance  a matcher reads the tokens of an answer      turn.parse        text of an answer is told apart
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tokenmill.core.errors import ConfigError

VARIABLE = "TOKENMILL_FAULTS"


class InjectedFault(RuntimeError):
    """What ``raise`` raises unless told otherwise. Not a ``TokenmillError``: nobody expects it."""


def _out_of_space() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _too_many_files() -> Exception:
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


ERRORS: dict[str, Callable[[], Exception]] = {
    "fault": lambda: InjectedFault("an injected fault"),
    "memory": lambda: MemoryError("an injected failure to allocate"),
    "disk": _out_of_space,
    "files": _too_many_files,
}
"""By the ``error`` that a fault names."""


@dataclass(slots=True)
class Fault:
    """What happens at a point, from the pass after ``after`` others on, ``times`` times (None: every time)."""

    point: str
    action: str | Callable[[Any], None] = "raise"
    """``raise``, ``hang``, ``kill`` (SIGKILL to this process), ``abort`` (a crash), ``exit``; or a function, called
    with what the point is about."""
    error: str = "fault"
    """For ``raise``: a key of ``ERRORS``."""
    seconds: float = 3600.0
    """For ``hang``: how long."""
    after: int = 0
    times: int | None = None
    token: int | None = None
    """Only where the tokens that the point is about hold this one: a fault that follows a request."""
    passes: int = field(default=0, init=False)
    """How often the point was passed, tokens permitting."""

    def happen(self, about: Any, tokens: Callable[[], Iterable[int]] | None) -> None:
        if self.token is not None and (tokens is None or self.token not in tokens()):
            return
        self.passes += 1
        if self.passes <= self.after or (self.times is not None and self.passes > self.after + self.times):
            return
        if callable(self.action):
            self.action(about)
        elif self.action == "raise":
            raise ERRORS[self.error]()
        elif self.action == "hang":
            threading.Event().wait(self.seconds)
        elif self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "abort":
            os.abort()
        else:
            os._exit(70)


_armed: list[Fault] = []


def fire(point: str, about: Any = None, *, tokens: Callable[[], Iterable[int]] | None = None) -> None:
    """Let happen what is armed at ``point``.

    Args:
        about: handed to a fault that is a function (the logits, say).
        tokens: tells the tokens that the point is about; called only where a fault asks.
    """
    if _armed:
        for fault in tuple(_armed):
            if fault.point == point:
                fault.happen(about, tokens)


@contextmanager
def armed(*faults: Fault) -> Iterator[None]:
    """While this holds, ``faults`` happen in this process."""
    _armed.extend(faults)
    try:
        yield
    finally:
        for fault in faults:
            _armed.remove(fault)


def arm_from_environment() -> None:
    """Arm what ``TOKENMILL_FAULTS`` says; a process calls it once, when it starts.

    Raises:
        ConfigError: it says nothing that makes sense.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    try:
        faults = [Fault(**entry) for entry in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{VARIABLE} must be a JSON list of faults (tokenmill/engine/faults.py): {error}") from error
    for fault in faults:
        if fault.action not in ("raise", "hang", "kill", "abort", "exit") or fault.error not in ERRORS:
            raise ConfigError(f"{VARIABLE}: unknown action {fault.action!r} or error {fault.error!r}")
    _armed.extend(faults)
