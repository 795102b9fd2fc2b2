"""What crosses between the two processes: MessagePack in frames, typed on both sides.

A frame is a header of eight bytes (magic, version, length) and a message of one of the classes here. Everything is
checked as it is read: a wrong magic or version, a length beyond ``MAX_BYTES``, a message that is none of these or
has a field of the wrong type raise ``ProtocolError``, and whoever reads closes the connection. Nothing that is read can
name code to run: no pickle.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec

from tokenmill.core import errors
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import RequestError, TokenmillError
from tokenmill.core.events import (
    Account,
    Admitted,
    EmbeddingEvent,
    Evicted,
    Failed,
    FinishedRecord,
    PreemptedForBlocks,
    PromptLogprobsEvent,
    StepEvents,
    TokenEvent,
)
from tokenmill.core.grammar import Grammar
from tokenmill.core.request import Request
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.telemetry import LiveFigures, Observation, StepAccount
from tokenmill.engine.watchdog import Motion

T = TypeVar("T")

MAGIC = b"TM"
VERSION = 1
HEADER = struct.Struct(">2sHI")
MAX_BYTES = 256 * 2**20
"""Of one message. The largest is a prompt's log-probabilities."""


class ProtocolError(Exception):
    """What came is not what the other side sends."""


# ---- to the engine -------------------------------------------------------------------------------------------


class Build(msgspec.Struct, tag="build", frozen=True):
    """The first message: what engine to make."""

    config: EngineConfig
    stuck_after_s: float


class Add(msgspec.Struct, tag="add", frozen=True):
    request: Request


class Abort(msgspec.Struct, tag="abort", frozen=True):
    request_id: str


class Stop(msgspec.Struct, tag="stop", frozen=True):
    request_id: str
    index: int


class Explain(msgspec.Struct, tag="explain", frozen=True):
    """Asks for an ``Answer`` with the account of a request under way."""

    number: int
    request_id: str


class Compile(msgspec.Struct, tag="compile", frozen=True):
    """Asks for an ``Answer`` once the grammar is compiled, or cannot be."""

    number: int
    grammar: Grammar
    param: str
    """The field to blame if it cannot be."""
    tenant: str


class Close(msgspec.Struct, tag="close", frozen=True):
    """End: nothing more is wanted."""


Command = Build | Add | Abort | Stop | Explain | Compile | Close


# ---- from the engine -----------------------------------------------------------------------------------------


class Problem(msgspec.Struct, frozen=True, array_like=True):
    """A ``TokenmillError``."""

    kind: str
    message: str
    code: str
    param: str | None = None

    @classmethod
    def of(cls, error: TokenmillError) -> Problem:
        return cls(type(error).__name__, error.message, error.code, getattr(error, "param", None))

    def error(self) -> TokenmillError:
        """The error again; one of an unknown kind is a plain ``RequestError``."""
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, RequestError):
            return kind(self.message, param=self.param, code=self.code)
        if isinstance(kind, type) and issubclass(kind, TokenmillError):
            return kind(self.message, code=self.code)
        return RequestError(self.message, param=self.param, code=self.code)


class Loading(msgspec.Struct, tag="loading", frozen=True):
    """How the start goes on: a stage's name, a note, or how far the stage is."""

    stage: str = ""
    note: str = ""
    done: int = 0
    total: int = 0


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The engine cannot be made, and why."""

    problem: Problem


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The engine runs."""

    limits: ModelLimits
    num_blocks: int
    block_size: int
    fingerprint: str
    stats: dict[str, float]


class Taking(msgspec.Struct, tag="taking", frozen=True):
    """These requests are in the step about to run, for the first time."""

    request_ids: list[str]


class Brought(msgspec.Struct, tag="brought", frozen=True):
    """A step's events."""

    num_tokens: int
    num_sequences: int
    seconds: float
    tokens: list[TokenEvent]
    finished: list[FinishedRecord]
    admitted: list[Admitted]
    preempted: list[PreemptedForBlocks]
    failed: list[tuple[str, Problem]]
    num_evicted: int
    prompt_logprobs: list[PromptLogprobsEvent]
    embeddings: list[EmbeddingEvent]
    stats: dict[str, float]

    @classmethod
    def of(cls, events: StepEvents, stats: dict[str, float]) -> Brought:
        decisions = events.decisions
        return cls(
            events.num_tokens,
            events.num_sequences,
            events.seconds,
            events.tokens,
            events.finished,
            [each for each in decisions if isinstance(each, Admitted)],
            [each for each in decisions if isinstance(each, PreemptedForBlocks)],
            [(each.request_id, Problem.of(each.error)) for each in decisions if isinstance(each, Failed)],
            sum(each.num_blocks for each in decisions if isinstance(each, Evicted)),
            events.prompt_logprobs,
            events.embeddings,
            stats,
        )

    def events(self) -> StepEvents:
        failed = [(request_id, problem.error()) for request_id, problem in self.failed]
        return StepEvents(
            self.tokens,
            self.prompt_logprobs,
            self.embeddings,
            [
                *self.admitted,
                *self.preempted,
                *(Failed(request_id, error) for request_id, error in failed if isinstance(error, RequestError)),
                *([Evicted(self.num_evicted)] if self.num_evicted else []),
            ],
            self.finished,
            self.num_tokens,
            self.num_sequences,
            self.seconds,
        )


class Observed(msgspec.Struct, frozen=True):
    """An ``Observation``."""

    about: dict[str, Any]
    account: dict[str, Any]
    under_way_s: float
    live: tuple[float, float, str] | None
    error: float
    error_sum: float
    error_counts: tuple[int, ...]

    @classmethod
    def of(cls, found: Observation) -> Observed:
        live = None if found.live is None else (found.live.mfu, found.live.mbu, found.live.regime)
        return cls(
            dict(found.about),
            found.account.as_dict(),
            found.under_way_s,
            live,
            found.error,
            found.error_sum,
            found.error_counts,
        )

    def observation(self) -> Observation:
        live = None if self.live is None else LiveFigures(*self.live)
        return Observation(
            self.about,
            StepAccount.from_dict(self.account),
            self.under_way_s,
            live,
            self.error,
            self.error_sum,
            self.error_counts,
        )


class Pulse(msgspec.Struct, tag="pulse", frozen=True):
    """The process lives; how its engine's thread moves, and numbers of this moment."""

    motion: Motion
    stats: dict[str, float]
    observed: Observed | None = None


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """To ``Explain`` or ``Compile``."""

    number: int
    account: Account | None = None
    problem: Problem | None = None


class Died(msgspec.Struct, tag="died", frozen=True):
    """The engine failed as a whole; the process ends."""


Report = Loading | Refused | Ready | Taking | Brought | Pulse | Answer | Died


_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def pack(message: Command | Report) -> bytes:
    """A frame."""
    body = _encoder.encode(message)
    if len(body) > MAX_BYTES:
        raise ProtocolError(f"a message of {len(body)} bytes is too large to send")
    return HEADER.pack(MAGIC, VERSION, len(body)) + body


def body_bytes(header: bytes) -> int:
    """How long the message after this header is."""
    magic, version, length = HEADER.unpack(header)
    if magic != MAGIC or version != VERSION:
        raise ProtocolError("a frame does not begin as frames do")
    if length > MAX_BYTES:
        raise ProtocolError(f"a frame announces {length} bytes, more than {MAX_BYTES}")
    assert isinstance(length, int)
    return length


def command_of(body: bytes) -> Command:
    return _decode(_commands, body)


def report_of(body: bytes) -> Report:
    return _decode(_reports, body)


def _decode(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, TokenmillError, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"a message cannot be read: {error}") from error
