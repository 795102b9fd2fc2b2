"""Driving a decoder by hand: steps of any shape over a paged cache, and Hugging Face beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenmill.kernels.batch import AttentionBatch
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.decoder import Decoder


@dataclass
class Driver:
    """A decoder with a cache of its own; each sequence's blocks are dealt out in a scattered order."""

    model: Decoder
    block_size: int = 16
    num_blocks: int = 256
    seed: int = 0
    tables: dict[int, list[int]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kv = KVTensors.allocate(self.model.config, self.num_blocks, self.block_size, dtype=self.model.dtype)
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(self.seed))
        self.free = order.tolist()

    def step(self, tokens: dict[int, Sequence[int]]) -> dict[int, Tensor]:
        """Compute the next tokens of some sequences together; logits ``[count, vocab]`` of each."""
        starts, counts = [], []
        for sequence, new in tokens.items():
            start = self.computed.get(sequence, 0)
            table = self.tables.setdefault(sequence, [])
            while len(table) * self.block_size < start + len(new):
                table.append(self.free.pop())
            starts.append(start)
            counts.append(len(new))
            self.computed[sequence] = start + len(new)
        batch = AttentionBatch.build(
            self.model.config, starts, counts, [self.tables[s] for s in tokens], block_size=self.block_size
        )
        ids = torch.tensor([token for new in tokens.values() for token in new])
        logits = self.model.logits(self.model.forward(ids, batch.positions, batch, self.kv))
        return dict(zip(tokens, torch.split(logits, counts), strict=True))

    def run(self, tokens: Sequence[int], chunks: Sequence[int] = ()) -> Tensor:
        """All logits of a fresh sequence, computed in chunks of the given sizes (the rest at once)."""
        sequence = len(self.tables)
        parts, done = [], 0
        for count in (*chunks, len(tokens)):
            if chunk := tokens[done : done + count]:
                parts.append(self.step({sequence: chunk})[sequence])
                done += len(chunk)
        return torch.cat(parts)

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Continue a fresh sequence, one token a step."""
        sequence = len(self.tables)
        found: list[int] = []
        new = list(prompt)
        while len(found) < num_tokens:
            found.append(int(self.step({sequence: new})[sequence][-1].argmax()))
            new = found[-1:]
        return found


def random_tokens(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    found: list[int] = torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest magnitude."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
