"""What the scheduler tells the outside: tokens, ends, and the decisions it took with their reasons.

A step brings one ``StepEvents``. Token events are plain tuples, since there is one per running sequence
per step; decisions are records, since they are rare and people read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenmill.core.errors import RequestError
from tokenmill.core.request import FinishReason
from tokenmill.core.step import TokenLogprobs

Cause = Literal[
    "step_boundary",  # arrived while a step ran: it is looked at when the next one is planned
    "kv_blocks",  # no free KV blocks
    "max_seqs",  # the batch holds as many sequences as allowed
    "token_budget",  # the step's tokens were spent on others
    "prompt_of_sibling",  # another choice of the same request is computing the shared prompt
    "batch_policy",  # static or dynamic batching waits for the batch to fill or to end
]
"""Why a sequence that could do something does not do it now."""


TokenEvent = tuple[str, int, tuple[int, ...], tuple[TokenLogprobs, ...] | None, FinishReason | None]
"""New tokens of one choice: (request id, choice index, token ids, log-probabilities if asked for, the finish
reason on the last). A plain tuple: there is one per running sequence per step. Finish reason ``stop`` means
that the last of the token ids ended it."""


@dataclass(frozen=True, slots=True)
class PromptLogprobsEvent:
    request_id: str
    index: int
    position: int
    entries: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingEvent:
    """What a request for an embedding brought; its end comes with it."""

    request_id: str
    values: bytes
    """Little-endian float32."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A sequence got its first blocks (``resumed``: again, after preemption)."""

    request_id: str
    index: int
    cached_tokens: int
    resumed: bool
    waited_for: str
    """What it was waiting for last."""


@dataclass(frozen=True, slots=True)
class PreemptedForBlocks:
    """A running sequence gave up its blocks; it will be computed again."""

    request_id: str
    index: int
    lost_tokens: int
    beneficiary: str
    """The request that needed the blocks."""


@dataclass(frozen=True, slots=True)
class Failed:
    """One request ends with an error; all its choices end."""

    request_id: str
    error: RequestError


@dataclass(frozen=True, slots=True)
class Evicted:
    """Cached blocks gave way to new ones this step."""

    num_blocks: int


Decision = Admitted | PreemptedForBlocks | Failed | Evicted


@dataclass(slots=True)
class StepEvents:
    """Everything one engine step has to tell, in order."""

    tokens: list[TokenEvent] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobsEvent] = field(default_factory=list)
    embeddings: list[EmbeddingEvent] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    finished: list[FinishedRecord] = field(default_factory=list)
    """Requests all of whose choices have ended, with their accounts."""
    num_tokens: int = 0
    """Tokens computed in the step (0: nothing ran)."""
    num_sequences: int = 0
    seconds: float = 0.0
    """Execution time of the step, on the executor's clock."""


@dataclass(frozen=True, slots=True)
class Account:
    """Where a request's time went: the parts add up to ``total_s`` (first choice to last)."""

    total_s: float
    queue_s: float
    prefill_s: float
    decode_s: float
    causes: dict[str, float]
    """Seconds by cause: ``queue:<Cause>``, ``prefill``, ``prefill:<Cause>``, ``decode``,
    ``decode:beside_prefill`` (in steps that also computed others' prompts), ``preempted:<Cause>``."""
    num_chunks: int
    """Steps in which prompt tokens were computed."""
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class FinishedRecord:
    """The end of a request: what metrics and the causal account are made from."""

    request_id: str
    tenant: str
    outcome: Literal["finished", "failed", "aborted"]
    arrival_s: float
    first_token_s: float | None
    finish_s: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    account: Account
