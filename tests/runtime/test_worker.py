"""The worker against Hugging Face, and its promises: plans as deltas, one row's failure is its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from tests.runtime.conftest import Tiny
from tests.runtime.support import GREEDY, VOCAB, Script, made_worker, new_sequence, tokens_of
from tokenmill.core.errors import NotSupported
from tokenmill.core.params import SamplingParams
from tokenmill.core.step import StepPlan
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.decoder import Decoder
from tokenmill.runtime.eager import EagerModel
from tokenmill.runtime.executor import LocalExecutor
from tokenmill.runtime.table import Row
from tokenmill.runtime.worker import Worker

PROMPT = [(i * 37 + 11) % VOCAB for i in range(45)]
BLOCKS = (9, 3, 60, 1, 22, 5, 8)


def their_logprobs(tiny: Tiny, token_ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return tiny.theirs(torch.tensor([token_ids])).logits[0].double().log_softmax(-1)


def their_greedy(tiny: Tiny, prompt: Sequence[int], count: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(int(their_logprobs(tiny, token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 7, 45])
def test_greedy_tokens_are_those_of_hugging_face(tiny: Tiny, chunk: int) -> None:
    results = Script(made_worker(tiny.ours)).finish(new_sequence(0, PROMPT, BLOCKS), 8, chunk=chunk)
    assert tokens_of(results, 0) == their_greedy(tiny, PROMPT, 8)
    assert all(r.seconds > 0 and not r.errors for r in results)


@pytest.mark.parametrize("chunk", [1, 8, 13, 45])
def test_prompt_logprobs(tiny: Tiny, chunk: int) -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=3, logprobs=1)
    results = Script(made_worker(tiny.ours)).finish(new_sequence(0, PROMPT, BLOCKS, params), 1, chunk=chunk)
    entries = {}
    for result in results:
        for position, part in result.prompt_logprobs.values():
            entries |= {position + i: entry for i, entry in enumerate(part)}
    assert sorted(entries) == list(range(1, len(PROMPT))), "one for each prompt token but the first"
    exact = their_logprobs(tiny, PROMPT)
    for position, entry in entries.items():
        row = exact[position - 1]
        assert entry.token_id == PROMPT[position]
        assert abs(entry.logprob - float(row[entry.token_id])) < 1e-4
        assert [t for t, _ in entry.top] == row.topk(3).indices.tolist()
        assert entry.rank == 1 + int((row > row[entry.token_id]).sum())
    (own,) = results[-1].logprobs[0]
    assert own.top == ((own.token_id, own.logprob),)
    assert abs(own.logprob - float(exact[-1, own.token_id])) < 1e-4


def test_prompt_logprobs_over_many_positions_are_the_same_in_pieces(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=2)
    whole = Script(made_worker(tiny.ours)).finish(new_sequence(0, PROMPT, BLOCKS, params), 1)
    monkeypatch.setattr("tokenmill.runtime.worker.PROMPT_LOGITS_ROWS", 7)
    pieces = Script(made_worker(tiny.ours)).finish(new_sequence(0, PROMPT, BLOCKS, params), 1)
    assert whole[0].prompt_logprobs == pieces[0].prompt_logprobs


def test_a_sequence_resumed_elsewhere_goes_on_the_same(tiny: Tiny) -> None:
    """Dropped and brought again whole, in other blocks and beside others: what preemption does."""
    params = SamplingParams(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.4, logprobs=2)
    undisturbed = Script(made_worker(tiny.ours)).finish(new_sequence(0, PROMPT, BLOCKS, params, seed=7), 10)
    script = Script(made_worker(tiny.ours))
    first = script.finish(new_sequence(0, PROMPT, BLOCKS, params, seed=7), 4)
    known = PROMPT + tokens_of(first, 0)
    again = new_sequence(5, known, (30, 31, 32, 33, 34, 35, 36), params, prompt_len=len(PROMPT), seed=7)
    other = new_sequence(6, PROMPT[:20], (40, 41, 42, 43))
    second = [script.step((6, 0, 20), (5, 0, len(known)), new=(again, other), dropped=(0,))]
    second += [script.step((6, 20 + i, 1), (5, len(known) + i, 1)) for i in range(5)]
    assert tokens_of(first, 0) + tokens_of(second, 5) == tokens_of(undisturbed, 0)
    logprobs = [r.logprobs[0] for r in first] + [r.logprobs[5] for r in second]
    assert logprobs == [r.logprobs[0] for r in undisturbed]


def test_blocks_shared_copied_and_added(tiny: Tiny) -> None:
    """A second choice reads the first one's blocks, its partly filled tail as a copy; tables grow by updates."""
    script = Script(made_worker(tiny.ours))
    params = SamplingParams(temperature=1.0)
    script.step((0, 0, 45), new=(new_sequence(0, PROMPT, BLOCKS[:6], params, seed=1),))
    sibling = new_sequence(1, PROMPT, (*BLOCKS[:5], 50), params, seed=2)
    results = [script.step((0, 45, 1), (1, 44, 1), new=(sibling,), copies=((BLOCKS[5], 50),))]
    results += [script.step((0, 46 + i, 1), (1, 45 + i, 1)) for i in range(2)]
    grown = {0: (6, (51,)), 1: (6, (52,))}
    results += [script.step((0, 48, 1), (1, 47, 1), block_updates=grown)]
    results += [script.step((1, 48, 1))]
    alone = Script(made_worker(tiny.ours)).finish(new_sequence(1, PROMPT, BLOCKS, params, seed=2), 5)
    assert tokens_of(results, 1) == tokens_of(alone, 1)


def test_poison_shows_a_read_of_what_was_not_written(tiny: Tiny) -> None:
    script = Script(made_worker(tiny.ours))
    script.step((0, 0, 45), new=(new_sequence(0, PROMPT, BLOCKS),))
    forgotten_copy = new_sequence(1, PROMPT, (*BLOCKS[:5], 50))
    result = script.step((0, 45, 1), (1, 44, 1), new=(forgotten_copy,))
    assert result.seq_ids == (0,) and "not finite" in result.errors[1]


def test_poison_shows_a_read_of_what_another_left(tiny: Tiny) -> None:
    script = Script(made_worker(tiny.ours))
    script.step((0, 0, 45), new=(new_sequence(0, PROMPT, BLOCKS),))
    script.step((1, 0, 3), new=(new_sequence(1, PROMPT[:20], BLOCKS),), dropped=(0,))
    result = script.step((1, 19, 1))
    assert "not finite" in result.errors[1], "positions 3 to 18 were not computed"


def test_a_row_that_fails_is_reported_once_and_harms_nobody(tiny: Tiny) -> None:
    """Depth 2: the plan after the failing one was made before the failure was known."""
    params = SamplingParams(temperature=0.9, logprobs=1)
    healthy = [new_sequence(i, PROMPT[: 20 + i], range(10 * i, 10 * i + 4), params, seed=i) for i in (1, 2)]
    hopeless = SamplingParams(allowed_token_ids=(5,), logit_bias={5: -100.0})
    banned = new_sequence(3, PROMPT, range(40, 47), hopeless)
    script = Script(made_worker(tiny.ours))
    first = script.step((1, 0, 21), (3, 0, 45), (2, 0, 22), new=(*healthy, banned))
    second = script.step((1, 21, 1), (3, 45, 1), (2, 22, 1))
    third = script.step((3, 46, 1))
    script.step(dropped=(1, 2, 3))
    assert "every token is banned" in first.errors[3] and first.seq_ids == (1, 2)
    assert not second.errors and second.seq_ids == (1, 2) and third.seq_ids == ()
    assert not script.worker.known_seq_ids
    for new in healthy:
        alone = Script(made_worker(tiny.ours)).finish(new, 2)
        assert tokens_of(alone, new.seq_id) == tokens_of([first, second], new.seq_id)
        assert [r.logprobs[new.seq_id] for r in alone] == [r.logprobs[new.seq_id] for r in (first, second)]


@pytest.mark.parametrize("prompt_logprobs", [None, 1])
def test_nan_in_one_sequence_stays_there(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, prompt_logprobs: int | None
) -> None:
    """A token whose embedding is NaN poisons the sequence that holds it, and no other row of the step."""
    weight = tiny.ours.embedding.parameters()[0].clone()
    weight[VOCAB - 1] = math.nan
    params = SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=prompt_logprobs)
    good = new_sequence(1, PROMPT[:30], (1, 2, 3, 4), params)
    alone = Script(made_worker(tiny.ours)).finish(good, 1)
    monkeypatch.setattr(tiny.ours.embedding.method, "weight", weight)
    bad = new_sequence(2, [*PROMPT[:20], VOCAB - 1, 4], (5, 6, 7), params)
    result = Script(made_worker(tiny.ours)).step((2, 0, 22), (1, 0, 30), new=(bad, good))
    assert set(result.errors) == {2} and "not finite" in result.errors[2]
    assert result.logprobs == alone[0].logprobs and result.prompt_logprobs == alone[0].prompt_logprobs


def test_drafts_are_refused(tiny: Tiny) -> None:
    with pytest.raises(NotSupported, match="drafts"):
        made_worker(tiny.ours).run(StepPlan(0, (), (), (), drafts={1: (2,)}))


def test_stop_tokens_are_banned_until_min_tokens(tiny: Tiny) -> None:
    first = their_greedy(tiny, PROMPT, 1)[0]
    params = SamplingParams(temperature=0.0, min_tokens=3)
    new = new_sequence(0, PROMPT, BLOCKS, params, stop_token_ids=(first,))
    drawn = tokens_of(Script(made_worker(tiny.ours)).finish(new, 3), 0)
    assert first not in drawn


def test_the_executor_runs_plans_in_order(tiny: Tiny) -> None:
    executor = LocalExecutor(made_worker(tiny.ours))
    executor.start()
    plans = [StepPlan(0, (0,), (0,), (45,), (new_sequence(0, PROMPT, BLOCKS, GREEDY),)), StepPlan(1, (0,), (45,), (1,))]
    pending = [executor.submit(plan) for plan in plans]
    drawn = [step.result().token_ids[0][0] for step in reversed(pending)][::-1]
    executor.close()
    assert drawn == their_greedy(tiny, PROMPT, 2)


def test_the_warm_up_keeps_within_a_short_context(tiny: Tiny) -> None:
    """A context shorter than a block: no position is touched that the rotary table does not have."""
    ends = []

    class Watched(EagerModel):
        def forward(self, rows: Sequence[Row], outputs: Sequence[int]) -> None:
            ends.extend(row.end for row in rows)
            super().forward(rows, outputs)

    decoder = Decoder(tiny.ours.config, max_context=5)
    Worker(Watched(decoder, KVTensors.allocate(decoder.config, 4, 16))).warm_up()
    assert ends == [5]
