"""``Sequence``: one continuation in progress, in tokens known and tokens computed.

::

    tokens   0 ........ prompt_len ........ num_tokens   + num_pending
             |------- num_planned -------|-- still to compute --|

``num_planned`` counts the tokens whose KV is in the cache or will be once the steps in flight are done.
``num_pending`` counts tokens being sampled by steps in flight: known to exist, value not yet known here.
What a step must still catch up on is ``num_tokens + num_pending - num_planned``: many for a fresh prompt,
one for a sequence that is generating. There is no phase.
"""

from __future__ import annotations

from typing import Any

from tokenmill.core.request import Request


class Sequence:
    """Mutable state of one choice of a request. The scheduler and its KV cache alone change it."""

    __slots__ = (
        "account",
        "block_hashes",
        "block_ids",
        "block_prefixes",
        "distrusts_cache",
        "index",
        "max_tokens",
        "num_cached",
        "num_pending",
        "num_planned",
        "num_preemptions",
        "num_prompt_logprobs",
        "num_published",
        "num_slots",
        "num_tokens",
        "order",
        "prompt_len",
        "publish_at",
        "request",
        "request_id",
        "seq_id",
        "shared_tail",
        "stop_token_ids",
        "token_ids",
        "was_given_blocks",
    )

    def __init__(self, seq_id: int, request: Request, index: int = 0) -> None:
        self.seq_id = seq_id
        """The worker's name for it; a new one after each preemption, so that stale results find nobody."""
        self.order = seq_id
        """Its place among all sequences by creation; never changes."""
        self.request = request
        self.request_id = request.id
        self.index = index
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.prompt_len = len(self.token_ids)
        self.num_tokens = self.prompt_len
        self.num_planned = 0
        self.num_pending = 0
        self.max_tokens = self.prompt_len + request.max_new_tokens
        self.stop_token_ids = request.stop_token_ids
        self.num_preemptions = 0
        self.num_prompt_logprobs = 0
        """Prompt positions whose log-probabilities are out (position 0 has none)."""
        self.account: object = None
        """Where its time goes: the scheduler's ``SequenceAccount``."""

        # The KV cache's part.
        self.block_ids: list[int] = []
        self.num_slots = 0
        """Token positions that ``block_ids`` can hold."""
        self.shared_tail = False
        """The block that the next token is written to may have other holders: copy it first."""
        self.num_cached = 0
        """Tokens found in the cache when first admitted."""
        self.block_hashes: list[bytes] = []
        """Chained content hashes of the first full blocks, as far as they were needed."""
        self.block_prefixes: list[Any] = []
        """What these hashes are of (``engine/kvcache/prefix.py``)."""
        self.num_published = 0
        """Leading blocks that the prefix index knows (or knew another copy of)."""
        self.publish_at = 0
        """Number of computed tokens at which the next block is full."""
        self.was_given_blocks = False
        """It started from blocks that another sequence computed."""
        self.distrusts_cache = False
        """It computes everything itself: blocks that it was given seem to hold numbers that are not finite."""

    @property
    def num_remaining(self) -> int:
        """Tokens still to compute."""
        return self.num_tokens + self.num_pending - self.num_planned

    @property
    def num_generated(self) -> int:
        return self.num_tokens - self.prompt_len

    def __repr__(self) -> str:
        return (
            f"Sequence({self.seq_id}, {self.request.id}[{self.index}], tokens={self.num_tokens}"
            f"+{self.num_pending}, planned={self.num_planned}, blocks={len(self.block_ids)})"
        )
