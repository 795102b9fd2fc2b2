"""``LLM``: the engine without a network, for scripts and batches.

::

    with LLM("story") as llm:
        print(llm.generate("Once upon a time")[0].text)

It drives ``Engine.step`` in the calling thread, with the scheduler, the sampling and the text handling that the
server uses, so a seeded request draws the same here and there. One thread at a time may use it. A stream that is
being read and a ``generate`` called meanwhile share the batch; leaving a stream early frees its blocks.
"""

from __future__ import annotations

import itertools
import secrets
import struct
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import RequestError
from tokenmill.core.events import Account, Admitted, Failed, FinishedRecord, StepEvents
from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import NO_TOKENS, Pooling, PoolingKind
from tokenmill.core.request import FinishReason, Request
from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.choice import ChoiceText, Output
from tokenmill.engine.grammar.compiler import Compiled
from tokenmill.engine.resolve import resolve
from tokenmill.engine.service import Submission, Usage
from tokenmill.engine.text import TextCodec
from tokenmill.launch import Launched, Progress, build

Message = Mapping[str, Any]
"""One turn of a conversation: ``{"role": "user", "content": "…"}``."""
Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or a conversation to answer."""

IDLE_SLEEP_S = 0.001
QUEUE_PER_SEQUENCE = 4
"""Prompts of a batch that are with the scheduler at once, per place in a step: enough to choose from."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    """One entry per token, when asked for."""
    finish_reason: FinishReason
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one prompt."""

    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    usage: Usage
    seed: int
    first_token_s: float | None
    """Seconds from submission to the first token."""
    account: Account
    """Where the time went."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    """One entry per prompt token (None for the first), when asked for."""

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class Embedding:
    """What one text means, as a vector."""

    values: tuple[float, ...]
    """Float32 numbers."""
    prompt_token_ids: tuple[int, ...]
    account: Account
    """Where the time went."""


class LLM:
    """A model, loaded and ready.

    Args:
        model: a folder, a hub name or a built-in model.
        progress: told how loading goes on.
        options: any field of ``EngineConfig``'s pieces, by name: ``max_seqs=8``, ``dtype="bfloat16"``.

    Raises:
        SetupError: it cannot be loaded; says why and what to do.
    """

    def __init__(self, model: str = "story", *, progress: Progress | None = None, **options: Any) -> None:
        self._start(build(EngineConfig.from_options(model=model, **options), progress))

    @classmethod
    def over(cls, launched: Launched) -> Self:
        """Over an engine that was built already; closing the ``LLM`` closes it."""
        llm = cls.__new__(cls)
        llm._start(launched)
        return llm

    def _start(self, launched: Launched) -> None:
        self.launched = launched
        self.codec = launched.checkpoint.codec
        self._engine = launched.engine
        self._runs: dict[str, _Run] = {}
        self._ids = itertools.count()
        self._room = QUEUE_PER_SEQUENCE * launched.config.scheduler.max_seqs

    # ---- answers -----------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Continue every prompt; the answers come in the order of the prompts.

        Args:
            params: for all prompts, or one for each.
            progress: show a bar on standard error.

        Raises:
            RequestError: of the first prompt that cannot be done; the others are given up.
        """
        several = _as_list(prompts)
        if isinstance(params, Sequence) and len(params) != len(several):
            raise ValueError(f"{len(several)} prompts, but {len(params)} sampling parameters")
        found: dict[int, Completion] = {}
        with closing(self.iter_completions(several, params)) as completions:
            for position, completion in _with_bar(completions, len(several)) if progress else completions:
                if isinstance(completion, RequestError):
                    raise completion
                found[position] = completion
        return [found[position] for position in range(len(several))]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Answer one conversation, or several, by the model's chat template; raises what ``generate`` raises."""
        return self.generate(messages, params, progress=progress)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[Output]:
        """Increments as they come. Close the iterator to give the rest up.

        Raises:
            RequestError: it cannot be done (on the first ``next``), or failed on the way.
        """
        run = self._submit(prompt, params or SamplingParams())
        try:
            while not run.over:
                self._step()
                if run.error is not None:
                    raise run.error
                while run.outputs:
                    yield run.outputs.popleft()
        finally:
            self._abort(run)

    def iter_completions(
        self, prompts: Iterable[Prompt], params: SamplingParams | Iterable[SamplingParams] | None = None
    ) -> Generator[tuple[int, Completion | RequestError]]:
        """(position of the prompt, its answer or why it has none), in the order in which they are done.

        Prompts are taken as there is room for them, so a file of a million may be passed as an iterator.
        """
        each = itertools.repeat(params or SamplingParams()) if isinstance(params, SamplingParams | None) else params
        wishes = zip(prompts, each, strict=not isinstance(each, itertools.repeat))
        with closing(self._iter_runs((prompt, one, None) for prompt, one in wishes)) as runs:
            for position, run in runs:
                yield position, run if isinstance(run, RequestError) else run.error or run.completion()

    def embed(
        self,
        texts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        pooling: PoolingKind | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
    ) -> list[Embedding]:
        """A vector for every text (or its token ids), in their order.

        Args:
            pooling: ``last`` or ``mean``; None: as the checkpoint says (``core/pooling.py``).
            dimensions: keep so many numbers, the first.
            normalize: scale what is kept to length 1.

        Raises:
            RequestError: of the first text that cannot be done; the others are given up.
        """
        several = _as_list(texts)
        wanted = Pooling(pooling, dimensions, normalize)
        found: dict[int, Embedding] = {}
        with closing(self._iter_runs((text, NO_TOKENS, wanted) for text in several)) as runs:
            for position, run in runs:
                error = run if isinstance(run, RequestError) else run.error
                if error is not None:
                    raise error
                assert isinstance(run, _Run)
                found[position] = run.made_embedding()
        return [found[position] for position in range(len(several))]

    # ---- life --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release weights, cache and journal."""
        self._engine.close()
        self.launched.checkpoint.grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the engine's side -------------------------------------------------------------------------

    def _iter_runs(
        self, wishes: Iterable[tuple[Prompt, SamplingParams, Pooling | None]]
    ) -> Generator[tuple[int, _Run | RequestError]]:
        """(position, the run that has ended or why there was none), in the order in which they end."""
        waiting = enumerate(wishes)
        under_way: dict[int, _Run] = {}
        try:
            while True:
                for position, wish in itertools.islice(waiting, self._room - len(under_way)):
                    try:
                        under_way[position] = self._submit(*wish)
                    except RequestError as error:
                        yield position, error
                if not under_way:
                    return
                self._step()
                for position in [position for position, run in under_way.items() if run.over]:
                    yield position, under_way.pop(position)
        finally:
            for run in under_way.values():
                self._abort(run)

    def _submit(self, prompt: Prompt, params: SamplingParams, pooling: Pooling | None = None) -> _Run:
        request = resolve(
            Submission(self._encode(prompt), params, pooling=pooling),
            self.launched.limits,
            self.codec,
            request_id=f"llm-{next(self._ids)}",
            seed=secrets.randbits(63),
            now=self._engine.clock.now(),
        )
        grammar = params.grammar
        compiled = None if grammar is None else self.launched.checkpoint.grammars.compile(grammar)
        self._engine.add(request)
        run = self._runs[request.id] = _Run(request, params, self.codec, compiled)
        return run

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.codec.encode(prompt))
        turns = [item for item in prompt if isinstance(item, Mapping)]
        return tuple(self.codec.encode_chat(turns)) if turns else tuple(i for i in prompt if isinstance(i, int))

    def _abort(self, run: _Run) -> None:
        if not run.over:
            self._engine.abort(run.request.id)
            self._route(self._engine.step())

    def _step(self) -> None:
        events = self._engine.step()
        self._route(events)
        if events.num_tokens == 0 and not events.finished and not events.decisions:
            # Dynamic batching may want to wait for more requests; nobody else can add one meanwhile.
            wait_s = self._engine.scheduler.wake_after_s(self._engine.clock.now())
            time.sleep(IDLE_SLEEP_S if wait_s is None else wait_s)

    def _route(self, events: StepEvents) -> None:
        """Hand every event to its request, and tell the engine which choices their text has ended."""
        runs = self._runs
        for decision in events.decisions:
            if isinstance(decision, Failed | Admitted) and (run := runs.get(decision.request_id)):
                run.decided(decision)
        for prompt_logprobs in events.prompt_logprobs:
            if run := runs.get(prompt_logprobs.request_id):
                run.prompt_logprobs += prompt_logprobs.entries
        for embedding in events.embeddings:
            if run := runs.get(embedding.request_id):
                run.embedding = embedding.values
        for request_id, index, token_ids, logprobs, reason in events.tokens:
            run = runs.get(request_id)
            if run is not None and not run.choices[index].done:
                run.push(index, token_ids, logprobs, reason)
                if run.choices[index].stopped_by_text:
                    self._engine.stop(request_id, index)
        for record in events.finished:
            if run := runs.pop(record.request_id, None):
                run.record = record


class _Run:
    """One request under way, on the side of text."""

    def __init__(
        self, request: Request, params: SamplingParams, codec: TextCodec, compiled: Compiled | None = None
    ) -> None:
        self.request = request
        self.compiled = compiled
        """Kept while it runs, so that the worker finds its grammar."""
        self.params = params
        """As the caller wrote them; the request's own may ask the engine for more."""
        self.choices = [ChoiceText(index, params, codec) for index in range(params.num_sequences)]
        self.outputs: deque[Output] = deque()
        """Not read yet by a stream."""
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        self.record: FinishedRecord | None = None
        self.error: RequestError | None = None
        self.embedding: bytes | None = None
        self._cached_tokens = 0
        self._collected: list[list[Output]] = [[] for _ in self.choices]

    @property
    def over(self) -> bool:
        return self.record is not None

    def decided(self, decision: Failed | Admitted) -> None:
        if isinstance(decision, Failed):
            self.error = decision.error
        elif decision.index == 0 and not decision.resumed:
            self._cached_tokens = decision.cached_tokens

    def push(
        self,
        index: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...] | None,
        reason: FinishReason | None,
    ) -> None:
        output = self.choices[index].push(token_ids, logprobs, reason)
        self.outputs.append(output)
        self._collected[index].append(output)

    def completion(self) -> Completion:
        """The answer; the request has ended well."""
        assert self.record is not None and self.error is None
        record, params = self.record, self.params
        ranking = [choice.index for choice in self.choices]
        if params.num_sequences > params.n:
            ranking.sort(key=lambda index: (-self.choices[index].mean_logprob, index))
        usage = Usage(
            len(self.request.prompt_token_ids), sum(choice.num_tokens for choice in self.choices), self._cached_tokens
        )
        return Completion(
            prompt_token_ids=self.request.prompt_token_ids,
            choices=tuple(self._choice(rank, index) for rank, index in enumerate(ranking[: params.n])),
            usage=usage,
            seed=self.request.seed,
            first_token_s=None if record.first_token_s is None else record.first_token_s - record.arrival_s,
            account=record.account,
            prompt_logprobs=None if params.prompt_logprobs is None else tuple(self.prompt_logprobs),
        )

    def made_embedding(self) -> Embedding:
        """The embedding; the request asked for one and has ended well."""
        assert self.record is not None and self.embedding is not None
        values = struct.unpack(f"<{len(self.embedding) // 4}f", self.embedding)
        return Embedding(values, self.request.prompt_token_ids, self.record.account)

    def _choice(self, rank: int, index: int) -> Choice:
        outputs, last = self._collected[index], self._collected[index][-1]
        assert last.finish_reason is not None
        logprobs = None
        if self.params.logprobs is not None:
            logprobs = tuple(entry for output in outputs for entry in output.logprobs or ())
        return Choice(
            index=rank,
            text="".join(output.text for output in outputs),
            token_ids=tuple(token_id for output in outputs for token_id in output.token_ids),
            logprobs=logprobs,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A text, a list of token ids and a list of messages are one prompt each; any other list holds several."""
    if isinstance(prompts, str):
        return [prompts]
    several = [item for item in prompts if not isinstance(item, int | Mapping)]
    single = [item for item in prompts if isinstance(item, int | Mapping)]
    return [cast(Prompt, single)] if single else several


def _with_bar(items: Iterable[_T], total: int) -> Iterator[_T]:
    from rich.console import Console
    from rich.progress import track

    yield from track(items, "generating", total=total, console=Console(stderr=True), transient=True)
