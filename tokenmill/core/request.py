"""``Request``: what the engine is asked to do, whole and resolved. Nothing in it changes after submission.

``SamplingParams`` says what the client wrote; a ``Request`` says what will be done: the tokens of the
prompt, the limit in tokens, which tokens end it, the seed. ``engine/service.py`` resolves the one into
the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenmill.core.params import SamplingParams

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

    @property
    def num_sequences(self) -> int:
        return self.params.num_sequences

    def sequence_seed(self, index: int) -> int:
        """The seed of choice ``index`` (see ``core/params.py``)."""
        return (self.seed + index) % 2**64
