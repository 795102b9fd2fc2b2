"""``POST /v1/completions``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.engine.service import Output
from tokenmill.server.answers import Gathered, gather, json_response
from tokenmill.server.context import Context, Ticket, tenant_of
from tokenmill.server.generate import Generation, unless_gone
from tokenmill.server.logprobs import CompletionLogprobsWriter, prompt_logprobs
from tokenmill.server.protocol.completions import (
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from tokenmill.server.sse import EventStream
from tokenmill.server.stream import stream_frames
from tokenmill.server.structured import field_of, grammar_of


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    text: str
    """What ``echo`` repeats: the client's own text, or what its token ids stand for."""


async def completions(context: Context, request: Request, body: CompletionRequest) -> Response:
    """Continue one text or several."""
    context.check_model(body.model)
    prompts = await _read_prompts(context, body)
    ticket: Ticket = request.state.ticket
    params = replace(body.to_params(), grammar=grammar_of(body))
    if params.grammar is not None:
        await context.service.compile(params.grammar, param=field_of(body), tenant=tenant_of(ticket))
    generation = Generation(context, ticket, [prompt.token_ids for prompt in prompts], params, body)
    base = {
        "id": ticket.answer_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": context.service.model_name,
        "system_fingerprint": context.fingerprint,
    }
    writer = _ChoiceWriter(context, body, prompts, generation)
    if body.stream:
        frames = stream_frames(
            generation,
            writer,
            base,
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
            include_obfuscation=body.include_obfuscation,
        )
        return EventStream(context, ticket.request_id, frames, generation.close)
    with closing(generation):
        gathered = await unless_gone(request.receive, gather(generation))
    answer: CompletionAnswer = {
        **base,  # type: ignore[typeddict-item]
        "choices": [writer.whole(prompt, choice) for prompt, choices in enumerate(gathered) for choice in choices],
        "usage": generation.usage,
    }
    if (timing := generation.timing) is not None:
        answer["timing"] = timing
    return json_response(answer)


async def _read_prompts(context: Context, body: CompletionRequest) -> list[Prompt]:
    codec = context.service.codec
    prompts = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            ids = await context.tokenise([prompt], "prompt", partial(codec.encode, prompt))
            prompts.append(Prompt(ids, prompt))
        else:
            text = codec.decode(prompt, skip_special_tokens=body.skip_special_tokens) if body.echo else ""
            prompts.append(Prompt(prompt, text))
    return prompts


class _ChoiceWriter:
    """Makes the ``choices`` entries, whole or chunk by chunk. Prompt ``p``'s choice ``i`` has index ``p·n + i``."""

    def __init__(
        self, context: Context, body: CompletionRequest, prompts: list[Prompt], generation: Generation
    ) -> None:
        self._codec = context.service.codec
        self._body = body
        self._prompts = prompts
        self._handles = generation.handles
        self._writers: dict[tuple[int, int], CompletionLogprobsWriter] = {}
        self._echoed: set[tuple[int, int]] = set()

    def whole(self, prompt: int, choice: Gathered) -> CompletionChoice:
        made: CompletionChoice = {
            "index": self._index(prompt, choice.index),
            "text": (self._prompts[prompt].text if self._body.echo else "") + choice.text,
            "logprobs": self._whole_logprobs(prompt, choice),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._body.prompt_logprobs is not None:
            entries = self._handles[prompt].prompt_logprobs
            made["prompt_logprobs"] = None if entries is None else prompt_logprobs(self._codec, entries)
        return made

    def increments(self, prompt: int, output: Output) -> Iterator[CompletionChoice]:
        key = (prompt, output.index)
        if self._body.echo and key not in self._echoed:
            self._echoed.add(key)
            yield self._chunk(key, self._prompts[prompt].text, self._echo_logprobs(key))
        entries = output.logprobs if self._body.logprobs is not None else None
        if output.text or entries:
            logprobs = self._writer(key).write(output.token_ids, entries) if entries else None
            yield self._chunk(key, output.text, logprobs)

    def end(self, prompt: int, output: Output) -> CompletionChoice:
        return {
            "index": self._index(prompt, output.index),
            "text": "",
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }

    def _chunk(self, key: tuple[int, int], text: str, logprobs: CompletionLogprobs | None) -> CompletionChoice:
        return {"index": self._index(*key), "text": text, "logprobs": logprobs, "finish_reason": None}

    def _index(self, prompt: int, index: int) -> int:
        return prompt * self._body.n + index

    def _whole_logprobs(self, prompt: int, choice: Gathered) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        key = (prompt, choice.index)
        generated = self._echo_logprobs(key), self._writer(key).write(choice.token_ids, choice.logprobs)
        first, second = generated
        return second if first is None else _joined(first, second)

    def _echo_logprobs(self, key: tuple[int, int]) -> CompletionLogprobs | None:
        entries = self._handles[key[0]].prompt_logprobs
        if not self._body.echo or self._body.logprobs is None or entries is None:
            return None
        return self._writer(key).write(self._prompts[key[0]].token_ids, entries)

    def _writer(self, key: tuple[int, int]) -> CompletionLogprobsWriter:
        if key not in self._writers:
            body = self._body
            detokenizer = self._codec.detokenizer(skip_special_tokens=body.skip_special_tokens, at_start=body.echo)
            self._writers[key] = CompletionLogprobsWriter(self._codec, body.logprobs or 0, detokenizer)
        return self._writers[key]


def _joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }
