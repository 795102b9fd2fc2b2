"""``Request``: what the engine is asked to do, whole and resolved. Nothing in it changes after submission.

``SamplingParams`` says what the client wrote; a ``Request`` says what will be done: the tokens of the
prompt, the limit in tokens, which tokens end it, the seed. ``engine/service.py`` resolves the one into
the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling

FinishReason = Literal["stop", "length"]
"""The only ends that are answers; every failure is an error instead."""


@dataclass(frozen=True, slots=True)
class CacheHints:
    """What the client tells the prefix cache about this prompt's blocks."""

    priority: int = 0
    """Blocks of lower priority are evicted first."""
    ttl_s: float | None = None
    """Blocks unused for this long are evicted before any others; None: no limit."""
    pin: bool = False
    """Evict these blocks only when there is nothing else left to evict."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What another engine brought of a request before it was lost. A sequence's state is its tokens and its seed, so an
    engine that is told these goes on as if nothing had happened."""

    token_ids: tuple[tuple[int, ...], ...]
    """By choice: tokens that are out already."""
    ended: frozenset[int] = frozenset()
    """Choices that are complete."""
    num_prompt_logprobs: int = 0
    """Prompt positions whose log-probabilities are out."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it (``params.num_sequences`` times)."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    max_new_tokens: int
    """Resolved limit: the client's, and what the context leaves."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end a sequence: the model's ends unless ``ignore_eos``, and the client's."""
    seed: int = 0
    arrival_s: float = 0.0
    priority: int = 0
    """Smaller runs earlier (policy ``priority``)."""
    deadline_s: float | None = None
    """Engine-clock moment by which the answer is wanted (policy ``deadline``); past it the request fails."""
    tenant: str = "default"
    cache_salt: str = ""
    """Prompts share cached blocks only within one salt: the tenant's, unless the client narrows it."""
    cache: CacheHints = field(default_factory=CacheHints)
    pooling: Pooling | None = None
    """If given, what is wanted is an embedding of the prompt: no token is drawn (``max_new_tokens`` is 0)."""
    weight: float = 1.0
    """Of the tenant, in the fair share (policy ``fair``)."""
    background: bool = False
    """Batch work: it runs in what the others leave, whatever the policy, and gives way to them."""

    progress: Progress | None = None
    """Not from the beginning: go on from here."""

    @property
    def num_sequences(self) -> int:
        return self.params.num_sequences

    @property
    def needs_whole_prompt(self) -> bool:
        """Something is told of every prompt position, so that none may be taken from the prefix cache."""
        mean = self.pooling is not None and self.pooling.kind == "mean"
        return mean or self.params.prompt_logprobs is not None

    def sequence_seed(self, index: int) -> int:
        """The seed of choice ``index`` (see ``core/params.py``)."""
        return (self.seed + index) % 2**64
