"""From what a client submitted to what the engine will do: ``Submission`` → ``Request``. Pure.

Everything that depends on the model is settled here: the limit in tokens, which tokens end the answer,
banned words as token ids, the seed. Whoever breaks a rule is told the field and the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tokenmill.core.errors import ContextLengthExceeded, InvalidRequest, NotSupported
from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling, PoolingKind
from tokenmill.core.request import Request
from tokenmill.engine.service import Submission
from tokenmill.engine.text import TextCodec


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What requests are checked against."""

    max_context: int
    vocab_size: int
    """Rows of the embedding: token ids below this."""
    eos_token_ids: frozenset[int]
    hidden_size: int = 0
    """Numbers of an embedding; 0: the engine makes none."""
    pooling: PoolingKind = "last"
    """How embeddings are made where the request does not say."""
    generates: bool = True
    """False: embeddings are all that can be asked for."""
    is_invariant: bool = True
    """No request's tokens depend on its company here; else those of ``deterministic`` requests alone do not."""


def resolve(
    submission: Submission, limits: ModelLimits, codec: TextCodec, *, request_id: str, seed: int, now: float
) -> Request:
    """The request to add to the engine; ``seed`` is used where the client gave none.

    Raises:
        InvalidRequest: a field does not fit the model; ``ContextLengthExceeded`` names both lengths.
        NotSupported: the checkpoint is for embeddings alone.
    """
    params = submission.params
    if submission.pooling is None and not limits.generates:
        raise NotSupported("this checkpoint has no output matrix: it makes embeddings, no text")
    _check_ids("prompt", submission.prompt_token_ids, limits.vocab_size)
    _check_ids("logit_bias", params.logit_bias, limits.vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, limits.vocab_size)
    _check_ids("allowed_token_ids", params.allowed_token_ids or (), limits.vocab_size)
    max_new_tokens = _max_new_tokens(len(submission.prompt_token_ids), params, limits)
    stops = frozenset(params.stop_token_ids)
    return Request(
        id=request_id,
        prompt_token_ids=submission.prompt_token_ids,
        params=_engine_params(params, codec),
        max_new_tokens=max_new_tokens,
        stop_token_ids=stops if params.ignore_eos else stops | limits.eos_token_ids,
        seed=seed if params.seed is None else params.seed,
        arrival_s=now,
        priority=submission.priority,
        deadline_s=None if submission.timeout_s is None else now + submission.timeout_s,
        tenant=submission.tenant,
        weight=submission.weight,
        background=submission.background,
        cache_salt=_salt(submission, limits),
        cache=submission.cache,
        pooling=None if submission.pooling is None else _pooling(submission.pooling, limits),
    )


def _salt(submission: Submission, limits: ModelLimits) -> str:
    """Who may share cached blocks. Those of deterministic requests were computed as such, and no others were."""
    apart = submission.params.deterministic and not limits.is_invariant
    # Length first, so that no choice of tenant and salt can be read as another one's.
    return f"{'deterministic ' * apart}{len(submission.tenant)}:{submission.tenant}{submission.cache_salt}"


def _pooling(wanted: Pooling, limits: ModelLimits) -> Pooling:
    if not limits.hidden_size:
        raise NotSupported("this engine makes no embeddings")
    if wanted.dimensions is not None and wanted.dimensions > limits.hidden_size:
        raise InvalidRequest(
            f"dimensions ({wanted.dimensions}) must not exceed the {limits.hidden_size} of this model's embeddings",
            param="dimensions",
        )
    return replace(wanted, kind=wanted.kind or limits.pooling)


def _max_new_tokens(num_prompt: int, params: SamplingParams, limits: ModelLimits) -> int:
    room = limits.max_context - num_prompt
    wanted = params.max_tokens
    if room < (1 if wanted is None else wanted):
        asked = "" if wanted is None else f" and max_tokens is {wanted}"
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limits.max_context} tokens, but the prompt has {num_prompt}"
            f"{asked}; shorten the prompt or ask for fewer tokens.",
            param="max_tokens" if wanted is not None and room > 0 else "prompt",
        )
    max_new_tokens = room if wanted is None else wanted
    if params.min_tokens > max_new_tokens:
        raise InvalidRequest(
            f"min_tokens ({params.min_tokens}) exceeds the {max_new_tokens} tokens that can be generated",
            param="min_tokens",
        )
    return max_new_tokens


def _engine_params(params: SamplingParams, codec: TextCodec) -> SamplingParams:
    """Banned words as token ids; log-probabilities where ``best_of`` needs them to rank."""
    if params.bad_words:
        params = replace(params, bad_words=(), bad_words_ids=(*params.bad_words_ids, *_word_ids(params, codec)))
    if params.num_sequences > params.n and params.logprobs is None:
        params = replace(params, logprobs=0)
    return params


def _word_ids(params: SamplingParams, codec: TextCodec) -> list[tuple[int, ...]]:
    """Each word at the start of a text, and after a space: two token sequences in most vocabularies."""
    found: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        for text in (word, " " + word):
            token_ids = tuple(codec.encode(text, add_special_tokens=False))
            if token_ids:
                found[token_ids] = None
    return list(found)


def _check_ids(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"token id {token_id} is outside the vocabulary (0 to {vocab_size - 1})", param=param)
