"""Moving a prompt's keys and values from the engine that computed them to the one that goes on.

The time is the link's: bytes over bandwidth and a latency. One sender's transfers queue behind each other. With
``overlap``, layers leave while the next ones are computed, so that only what the prompt's computing did not cover
is left to wait for. At the receiver the tokens count as computed: ``ReceivingCache`` gives such a sequence blocks
like any other and only the last token to compute.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.core.errors import ConfigError
from tokenmill.core.sequence import Sequence
from tokenmill.engine.kvcache import KVCache


@dataclass(frozen=True, slots=True)
class TransferCost:
    """A link between a prefill and a decode replica.

    Attributes:
        bytes_per_token: keys and values of one token, all devices of a replica together.
        bytes_per_s: what the link carries in one direction.
        latency_s: per transfer.
        overlap: layers are sent while the prompt is still being computed.
    """

    bytes_per_token: float
    bytes_per_s: float
    latency_s: float = 0.0
    overlap: bool = False

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0:
            raise ConfigError(f"transfer bandwidth must be above 0 bytes a second, not {self.bytes_per_s}")
        if not (self.bytes_per_token >= 0 and self.latency_s >= 0):
            raise ConfigError("transfer bytes per token and latency must be at least 0")

    def wire_s(self, num_tokens: int) -> float:
        """How long the link is busy with so many tokens."""
        return num_tokens * self.bytes_per_token / self.bytes_per_s

    def end_s(self, num_tokens: int, free_s: float, begin_s: float, done_s: float) -> tuple[float, float]:
        """(when the link is free again, when the last byte has arrived).

        The link was busy until ``free_s``; the prompt was computed from ``begin_s`` to ``done_s``.
        """
        start_s = max(free_s, begin_s if self.overlap else done_s)
        sent_s = max(start_s + self.wire_s(num_tokens), done_s)
        return sent_s, sent_s + self.latency_s


class ReceivingCache(KVCache):
    """A ``KVCache`` into which the tokens of some requests come computed."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        super().__init__(num_blocks, block_size, prefix_caching=prefix_caching)
        self._received: dict[str, int] = {}

    def receive(self, request_id: str, num_tokens: int) -> None:
        """The KV of the request's first ``num_tokens`` tokens has arrived; lost if it is preempted."""
        self._received[request_id] = num_tokens

    def admit(self, seq: Sequence, now: float) -> bool:
        if not super().admit(seq, now):
            return False
        seq.num_planned = max(seq.num_planned, self._received.pop(seq.request_id, 0))
        return True
