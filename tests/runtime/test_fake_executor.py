"""The fake executor keeps its two promises: tokens independent of the schedule, and no wrong plan unnoticed."""

from __future__ import annotations

import pytest

from tokenmill.core.params import SamplingParams
from tokenmill.core.step import NewSequence, StepPlan
from tokenmill.testing.executor import FakeExecutor, PlanViolation

PROMPT = tuple(range(10, 20))


def new(seq_id: int, block_ids: tuple[int, ...], token_ids: tuple[int, ...] = PROMPT, **more: object) -> NewSequence:
    fields: dict[str, object] = {"prompt_len": len(PROMPT), "seed": 5, "stop_token_ids": frozenset(), **more}
    return NewSequence(seq_id, token_ids, params=SamplingParams(), block_ids=block_ids, **fields)  # type: ignore[arg-type]


def executor(**options: object) -> FakeExecutor:
    made = FakeExecutor(8, 4, **options)  # type: ignore[arg-type]
    made.start()
    return made


def run(fake: FakeExecutor, *plans: StepPlan) -> list[int]:
    pending = [fake.submit(plan) for plan in plans]
    return [token for step in pending for tokens in step.result().token_ids for token in tokens]


def test_tokens_do_not_depend_on_chunks() -> None:
    whole, chunked = executor(), executor()
    blocks = (3, 1, 0, 7)
    a = run(whole, StepPlan(0, (1,), (0,), (10,), (new(1, blocks),)), StepPlan(1, (1,), (10,), (1,)))
    b = run(
        chunked,
        StepPlan(0, (1,), (0,), (3,), (new(1, blocks),)),
        StepPlan(1, (1,), (3,), (7,)),
        StepPlan(2, (1,), (10,), (1,)),
    )
    assert a == b == list(whole.expected_tokens(PROMPT, 2, seed=5))


def test_recomputed_sequence_goes_on_the_same() -> None:
    fake = executor()
    first = run(fake, StepPlan(0, (1,), (0,), (10,), (new(1, (0, 1, 2)),)))
    again = new(1, (5, 4, 3), (*PROMPT, *first))
    second = run(fake, StepPlan(1, (1,), (0,), (11,), (again,), dropped=(1,)))
    assert (*first, *second) == fake.expected_tokens(PROMPT, 2, seed=5)


def test_shared_and_copied_blocks_are_honoured() -> None:
    fake = executor()
    plans = (
        StepPlan(0, (1,), (0,), (10,), (new(1, (0, 1, 2)),)),
        StepPlan(1, (1, 2), (10, 9), (1, 1), (new(2, (0, 1, 6), seed=6),), copies=((2, 6),)),
    )
    tokens = run(fake, *plans)
    assert tokens[2:] == list(fake.expected_tokens(PROMPT, 1, seed=6))


def test_stop_tokens_come_only_when_allowed() -> None:
    fake = executor(vocab_size=8, stop_probability=1.0)
    assert fake.expected_tokens(PROMPT, 9, stop_token_ids=(3, 5)) == (3,)
    forced = fake.expected_tokens(PROMPT, 9, stop_token_ids=(3, 5), min_tokens=4)
    assert len(forced) == 5 and forced[-1] == 3 and not {3, 5} & set(forced[:-1])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StepPlan(1, (1,), (11,), (1,)), "only 11 tokens"),
        (StepPlan(1, (1,), (9,), (2,)), "10 are computed"),
        (StepPlan(1, (2,), (0,), (1,)), "unknown sequence 2"),
        (StepPlan(0, (1,), (10,), (1,)), "step_id must grow"),
        (StepPlan(1, (1, 1), (10, 10), (1, 1)), "two rows"),
        (StepPlan(1, (1,), (10,), (1,), block_updates={1: (2, ())}), "no block"),
        (StepPlan(1, (1,), (10,), (1,), block_updates={1: (0, (0, 1, 9))}), "outside the pool"),
        (StepPlan(1, (1,), (10,), (1,), block_updates={1: (0, (0, 2, 1))}), "holds another history"),
        (StepPlan(1, (1,), (10,), (1,), block_updates={1: (1, (5, 2))}), "never written"),
        (StepPlan(1, (1,), (10,), (1,), copies=((7, 0),)), "never written"),
        (StepPlan(1, (2,), (9,), (1,), (new(2, (0, 1, 6)),)), "position 8 in block 6"),
        (StepPlan(1, (1, 2), (10, 10), (1, 1), (new(2, (0, 1, 2), (*PROMPT, 9)),)), "written twice"),
        (StepPlan(1, (), (), (), (new(1, (5,)),)), "new but known"),
        (StepPlan(1, (), (), (), dropped=(9,)), "unknown sequence 9"),
    ],
)
def test_wrong_plans_are_found(plan: StepPlan, message: str) -> None:
    fake = executor()
    run(fake, StepPlan(0, (1,), (0,), (10,), (new(1, (0, 1, 2)),)))
    with pytest.raises(PlanViolation, match=message):
        run(fake, plan)


def test_a_failing_row_stays_silent_until_dropped() -> None:
    fake = executor(fail=lambda seq_id, position: "logits" if position == 10 else None)
    first = fake.submit(StepPlan(0, (1,), (0,), (10,), (new(1, (0, 1, 2)),)))
    second = fake.submit(StepPlan(1, (1,), (10,), (1,)))
    assert second.result().token_ids == () and first.result().errors == {1: "logits"}
    run(fake, StepPlan(2, (), (), (), dropped=(1,)))
    assert not fake.known_seq_ids
