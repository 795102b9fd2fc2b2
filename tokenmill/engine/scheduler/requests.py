"""The requests under way: which choices of each still live, and its record when the last one has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenmill.core.events import FinishedRecord
from tokenmill.core.request import Progress, Request
from tokenmill.core.sequence import Sequence
from tokenmill.engine.scheduler.account import SequenceAccount


def account_of(seq: Sequence) -> SequenceAccount:
    assert isinstance(seq.account, SequenceAccount)
    return seq.account


@dataclass(slots=True)
class LiveRequest:
    """A request and its choices. Choice 0, the leader, computes the prompt; the others then fork from it."""

    request: Request
    leader: Sequence
    live: dict[int, Sequence]
    held_siblings: list[Sequence]
    """Choices that wait for the leader to compute the prompt."""
    ended: list[Sequence] = field(default_factory=list)

    @classmethod
    def start(cls, request: Request, first_seq_id: int) -> LiveRequest:
        sequences = [Sequence(first_seq_id + i, request, i) for i in range(request.num_sequences)]
        for seq in sequences:
            seq.account = SequenceAccount(request.arrival_s)
        if request.progress is not None:
            return cls._resumed(request, request.progress, sequences)
        for sibling in sequences[1:]:
            account_of(sibling).stalled = "prompt_of_sibling"
        return cls(request, sequences[0], dict(enumerate(sequences)), sequences[1:])

    @classmethod
    def _resumed(cls, request: Request, progress: Progress, sequences: list[Sequence]) -> LiveRequest:
        """Begun by another engine: every choice goes on from its own tokens, as after a preemption."""
        for seq, token_ids in zip(sequences, progress.token_ids, strict=True):
            seq.token_ids += token_ids
            seq.num_tokens += len(token_ids)
        sequences[0].num_prompt_logprobs = progress.num_prompt_logprobs
        live = {seq.index: seq for seq in sequences if seq.index not in progress.ended}
        ended = [seq for seq in sequences if seq.index in progress.ended]
        return cls(request, sequences[0], live, [], ended)

    def end(self, seq: Sequence) -> None:
        del self.live[seq.index]
        self.ended.append(seq)

    def record(self, outcome: Literal["finished", "failed", "aborted"], now: float) -> FinishedRecord:
        """The record of a request whose choices have all ended; its time is that of the one that ended last."""
        first_tokens = [s for seq in self.ended if (s := account_of(seq).first_token_s) is not None]
        return FinishedRecord(
            request_id=self.request.id,
            tenant=self.request.tenant,
            outcome=outcome,
            arrival_s=self.request.arrival_s,
            first_token_s=min(first_tokens, default=None),
            finish_s=now,
            prompt_tokens=self.leader.prompt_len,
            cached_tokens=self.leader.num_cached,
            generated_tokens=sum(seq.num_generated for seq in self.ended),
            account=account_of(self.ended[-1]).summary(now),
        )
