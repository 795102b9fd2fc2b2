"""The skeleton that streamed answers share: opening, increments, one end per choice, usage, ``[DONE]``.

The last chunk is held back until the request's account is there, since it carries the ``timing``; every
other chunk leaves as soon as its tokens are there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from tokenmill.engine.service import Output
from tokenmill.server.generate import Generation
from tokenmill.server.sse import DONE, frame, obfuscation

Choice = Mapping[str, Any]


class ChunkChoices(Protocol):
    """Makes the ``choices`` entries of one endpoint's chunks."""

    def increments(self, prompt: int, output: Output) -> Iterable[Choice]:
        """Zero or more entries for an increment, the opening of its choice included where one is due."""
        ...

    def end(self, prompt: int, output: Output) -> Choice:
        """The entry with the finish reason."""
        ...


async def stream_frames(
    generation: Generation,
    make: ChunkChoices,
    base: Mapping[str, Any],
    *,
    include_usage: bool,
    continuous_usage: bool = False,
    include_obfuscation: bool = False,
) -> AsyncGenerator[bytes, None]:
    """The events of a streamed answer. ``base`` is what all its chunks have in common.

    ``continuous_usage``: with ``include_usage``, the usage so far is in every chunk.
    """
    if include_usage:
        base = {**base, "usage": None}
    each_has_usage = include_usage and continuous_usage
    num_open = generation.num_choices
    last: dict[str, Any] = {}
    async with aclosing(generation.outputs()) as outputs:
        async for prompt, output in outputs:
            if each_has_usage:
                base = {**base, "usage": generation.usage}
            for choice in make.increments(prompt, output):
                padding = {"obfuscation": obfuscation(choice)} if include_obfuscation else {}
                yield frame({**base, "choices": [choice], **padding})
            if output.finish_reason is None:
                continue
            num_open -= 1
            last = {**base, "choices": [make.end(prompt, output)]}
            if num_open:
                yield frame(last)
    if include_usage:
        yield frame(last)
        last = {**base, "choices": [], "usage": generation.usage}
    if (timing := generation.timing) is not None:
        last["timing"] = timing
    yield frame(last)
    yield DONE
