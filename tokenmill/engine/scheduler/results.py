"""Reading a step's result, row by row."""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.core.errors import (
    GrammarFailed,
    InvalidRequest,
    NumericalError,
    OutOfMemory,
    PoisonRequest,
    RequestError,
)
from tokenmill.core.events import PromptLogprobsEvent
from tokenmill.core.sequence import Sequence
from tokenmill.core.step import StepPlan, StepResult

_ROW_ERRORS: dict[str, type[RequestError]] = {
    GrammarFailed.code: GrammarFailed,
    PoisonRequest.code: PoisonRequest,
    OutOfMemory.code: OutOfMemory,
    InvalidRequest.code: InvalidRequest,
}
"""By the code that a worker gives; anything else is numerical."""


def row_error(reason: str, code: str | None) -> RequestError:
    """What ends the request of a row that brought an error."""
    return _ROW_ERRORS.get(code or "", NumericalError)(reason)


def tokens_by_row(plan: StepPlan, result: StepResult) -> Iterable[tuple[int, ...] | None]:
    """For each row of the plan what it sampled; None for a row that did not."""
    if result.seq_ids == plan.seq_ids:
        return result.token_ids
    return map(dict(zip(result.seq_ids, result.token_ids, strict=True)).get, plan.seq_ids)


def new_prompt_logprobs(running: dict[int, Sequence], result: StepResult) -> Iterable[PromptLogprobsEvent]:
    """Those of positions not told before (a preempted prompt is computed again)."""
    for seq_id, (position, entries) in result.prompt_logprobs.items():
        seq = running.get(seq_id)
        if seq is None or seq.index != 0:
            continue
        fresh = entries[max(0, seq.num_prompt_logprobs + 1 - position) :]
        if fresh:
            first = position + len(entries) - len(fresh)
            seq.num_prompt_logprobs = first + len(fresh) - 1
            yield PromptLogprobsEvent(seq.request_id, 0, first, fresh)
