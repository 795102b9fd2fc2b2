"""How long a queue takes, foreseen from an engine's steps."""

from __future__ import annotations

import pytest

from tokenmill.core.events import Account, FinishedRecord, StepEvents
from tokenmill.server.pace import FIRST_GUESS, MIN_STEPS, Pace

BASE_S, TOKEN_S = 0.02, 0.0005


def fed(rows: int = 8, overhead: float = 1.5, prompts: int = 100) -> Pace:
    """An engine whose steps hold ``rows`` rows and now and then a prompt; the loop adds half to each."""
    pace, now = Pace(64, 512), 0.0
    for number in range(200):
        tokens = rows + (prompts if number % 3 == 0 else 0)
        seconds = BASE_S + TOKEN_S * tokens
        now += overhead * seconds
        pace.step(StepEvents(num_tokens=tokens, num_sequences=rows, seconds=seconds), now, crowded=True)
    return pace


def ended(generated: int, prompt: int = 100, cached: int = 0) -> FinishedRecord:
    account = Account(1.0, 0.0, 0.0, 1.0, {}, 1, 0)
    return FinishedRecord("r", "t", "finished", 0.0, 0.5, 1.0, prompt, cached, generated, account)


def test_a_queue_takes_its_steps_and_its_tokens() -> None:
    pace = fed()
    wanted = 1.5 * (1000 / 8 * BASE_S + 3000 * TOKEN_S)
    assert pace.seconds(2000, 1000) == pytest.approx(wanted, rel=0.1)


def test_prompts_alone_take_as_many_steps_as_the_budget_needs() -> None:
    assert fed().seconds(5120, 0) == pytest.approx(1.5 * (10 * BASE_S + 5120 * TOKEN_S), rel=0.1)


def test_cached_prompts_are_not_computed() -> None:
    pace = fed()
    before = pace.seconds(5000, 10)
    for _ in range(100):
        pace.ended(ended(20, cached=90), 1)
    assert pace.seconds(5000, 10) < 0.3 * before


def test_answers_are_as_long_as_they_were() -> None:
    pace = Pace(8, 64)
    assert pace.expected_tokens(10_000) == FIRST_GUESS
    for _ in range(200):
        pace.ended(ended(60), 2)
    assert pace.expected_tokens(10_000) == pytest.approx(30.0)
    assert pace.expected_tokens(7) == 7.0
    assert pace.expected_tokens(0) == 0.0


def test_nothing_is_foreseen_before_something_is_known() -> None:
    pace = Pace(8, 64)
    for number in range(MIN_STEPS - 1):
        pace.step(StepEvents(num_tokens=8, num_sequences=8, seconds=0.1), 0.1 * number, crowded=True)
    assert pace.seconds(1000, 1000) == 0.0


def test_idle_time_is_nobody_s() -> None:
    pace = fed()
    before = pace.seconds(1000, 1000)
    pace.idle()
    for number in range(50):
        step = StepEvents(num_tokens=8, num_sequences=8, seconds=BASE_S + 8 * TOKEN_S)
        pace.step(step, 1e6 + 100 * number, crowded=True)
        pace.idle()
    assert pace.seconds(1000, 1000) == pytest.approx(before, rel=0.3)


def test_what_a_request_is_like_is_learnt_from_those_that_were_let_in() -> None:
    pace = fed()
    assert pace.mean_prompt == 0.0
    for _ in range(200):
        pace.entered(80, 120.0)
    assert (pace.mean_prompt, pace.mean_answer) == (pytest.approx(80, rel=0.01), pytest.approx(40, rel=0.01))


def test_waits_that_were_longer_than_foreseen_lengthen_the_next() -> None:
    """The steps alone say a second; whoever began had waited two. One long wait alone changes little."""
    pace = fed()
    before = pace.seconds(0, 800)
    assert before > 0
    pace.waited(2 * before, before)
    assert pace.seconds(0, 800) < 1.1 * before
    for _ in range(200):  # all let in before any of them had begun: the same surprise is not counted 200 times
        pace.waited(2 * before, before)
    assert pace.seconds(0, 800) == pytest.approx(2 * before, rel=0.02)
    for _ in range(200):
        pace.waited(1e9, before)
    assert pace.seconds(0, 800) == pytest.approx(4 * before)
