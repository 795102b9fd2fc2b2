"""A change that is predicted, made in the engine it was predicted for: what it brings is what was said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.perf.diagnose.engines import Built, Truth
from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.diagnose import Change, Diagnosis

CROWD = {"num_requests": 60, "prompts": (64,), "answers": (120,)}


def change(found: Diagnosis, option: str) -> Change:
    return next(each for each in found.changes if each.option.startswith(option))


def tokens_per_s(account: StepAccount) -> float:
    return sum(each.outputs for each in account.classes.values()) / account.busy_s


def test_more_places_bring_what_was_predicted() -> None:
    built = Built(**CROWD, options={"max_seqs": 4})
    predicted = change(built.diagnosed(), "--max-seqs 8")
    larger = replace(built, options={"max_seqs": 8}).run()
    assert predicted.after == pytest.approx(tokens_per_s(larger), rel=0.1)
    assert "of requests waited" in predicted.why


def test_more_blocks_bring_what_was_predicted() -> None:
    built = Built(**CROWD | {"num_requests": 150}, num_blocks=72)  # so many that the last ones do not matter
    predicted = change(built.diagnosed(), "--num-blocks 144")
    assert predicted.after == pytest.approx(tokens_per_s(replace(built, num_blocks=144).run()), rel=0.1)


def test_larger_pieces_bring_what_was_predicted() -> None:
    built = Built(prompts=(1024,), answers=(2,), num_requests=30, options={"max_step_tokens": 32})
    predicted = change(built.diagnosed(), "--max-step-tokens 64")
    larger = replace(built, options={"max_step_tokens": 64}).run()
    assert predicted.after == pytest.approx(tokens_per_s(larger), rel=0.1)


def test_another_layout_brings_what_was_predicted() -> None:
    """Fewer devices where messages take the time, more where memory does."""
    truth = Truth(tp=8, message_s=40e-6)
    found = Built(truth).diagnosed()
    halved = Built(replace(truth, tp=4)).run()
    fewer = [each for each in found.changes if each.option == "--tensor-parallel-size 4"]
    assert not fewer or halved.busy_s / halved.num_steps < found.step_s
    alone = Built()
    predicted = change(alone.diagnosed(), "--tensor-parallel-size 2")
    two = Built(Truth(tp=2)).run()
    assert predicted.after == pytest.approx(two.busy_s / two.num_steps, rel=0.1)


def test_changes_are_ordered_by_what_they_bring_and_none_brings_nothing() -> None:
    found = Built(**CROWD, num_blocks=60).diagnosed()
    gains = [each.gain for each in found.changes]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] >= 1.02
    assert found.changes[0].metric == "tokens_per_s"


def test_twice_the_bandwidth_is_worth_what_it_is_worth() -> None:
    found = Built().diagnosed()
    faster = Built(Truth(bytes_per_s=4e12)).run()
    measured = faster.busy_s / faster.num_steps / found.step_s - 1
    assert found.elasticities["memory bandwidth"]["step_s"] == pytest.approx(measured, abs=0.03)
