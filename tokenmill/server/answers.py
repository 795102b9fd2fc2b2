"""What whole (not streamed) answers share: collecting a generation, and sending JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from tokenmill.core.request import FinishReason
from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.service import Output
from tokenmill.server import jsonio
from tokenmill.server.generate import Generation
from tokenmill.server.turn import Piece, TurnParser


@dataclass(slots=True)
class Gathered:
    """One choice, complete."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    """What a parser made of the text."""
    finish_reason: FinishReason = "length"
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


async def gather(generation: Generation, parsers: Sequence[TurnParser] = ()) -> list[list[Gathered]]:
    """Follow ``generation`` to its end: the choices of each prompt.

    ``parsers``: one a choice, for a generation of one prompt.
    """
    made = [[Gathered(index) for index in range(generation.params.n)] for _ in generation.handles]
    async for prompt, output in generation.outputs():
        choice = made[prompt][output.index]
        choice.texts.append(output.text)
        choice.token_ids += output.token_ids
        choice.logprobs += output.logprobs or ()
        if parsers:
            choice.pieces += pieces_of(parsers[output.index], output)
        if output.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = output.finish_reason, output.stop_reason
    return made


def pieces_of(parser: TurnParser, output: Output) -> list[Piece]:
    """What an increment adds, the last one's rest included."""
    pieces = parser.push(output.text, len(output.token_ids))
    return pieces if output.finish_reason is None else [*pieces, *parser.finish()]


def json_response(content: Any, status: int = 200) -> Response:
    """``content`` as JSON."""
    return Response(jsonio.dumps(content), status, media_type="application/json")
