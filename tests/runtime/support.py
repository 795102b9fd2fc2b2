"""Driving a worker by hand: one sequence after the other, plans written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenmill.core.params import SamplingParams
from tokenmill.core.step import NewSequence, StepPlan, StepResult
from tokenmill.kernels.kv import KVTensors
from tokenmill.runtime.eager import EagerModel
from tokenmill.runtime.worker import Worker

VOCAB = 211
GREEDY = SamplingParams(temperature=0.0)


def made_worker(model: Any, *, num_blocks: int = 64, block_size: int = 8) -> Worker:
    kv = KVTensors.allocate(model.config, num_blocks, block_size)
    worker = Worker(EagerModel(model, kv), poison=True)
    worker.warm_up()
    return worker


def new_sequence(
    seq_id: int,
    token_ids: Sequence[int],
    block_ids: Sequence[int],
    params: SamplingParams = GREEDY,
    *,
    prompt_len: int | None = None,
    seed: int = 0,
    stop_token_ids: Sequence[int] = (),
) -> NewSequence:
    return NewSequence(
        seq_id,
        tuple(token_ids),
        prompt_len or len(token_ids),
        params,
        seed,
        frozenset(stop_token_ids),
        tuple(block_ids),
    )


class Script:
    """Runs plans on a worker, numbering them."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.num_steps = 0

    def step(self, *rows: tuple[int, int, int], **fields: Any) -> StepResult:
        """One step of rows (seq_id, start, count)."""
        seq_ids, starts, counts = zip(*rows, strict=True) if rows else ((), (), ())
        result = self.worker.run(StepPlan(self.num_steps, seq_ids, starts, counts, **fields))
        self.num_steps += 1
        return result

    def finish(self, new: NewSequence, num_tokens: int, *, chunk: int = 10_000, start: int = 0) -> list[StepResult]:
        """Compute ``new`` in chunks and draw ``num_tokens`` tokens."""
        results = []
        known, fields = len(new.token_ids), {"new": (new,)}
        while start < known + num_tokens - 1:
            count = min(chunk, max(known - start, 1))
            results.append(self.step((new.seq_id, start, count), **fields))
            start, fields = start + count, {}
        return results


def tokens_of(results: Sequence[StepResult], seq_id: int) -> list[int]:
    drawn = [dict(zip(r.seq_ids, r.token_ids, strict=True)).get(seq_id, ()) for r in results]
    return [token for tokens in drawn for token in tokens]
