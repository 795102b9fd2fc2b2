"""A request that another engine began goes on from its tokens, at any of them. FT-05 (with the fake executor)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.harness import Rig, request
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Progress, Request

PROMPT = tuple(range(40, 61))


def whole(req: Request) -> Rig:
    rig = Rig()
    rig.add(req)
    rig.run()
    return rig


@pytest.mark.parametrize("depth", [1, 2])
def test_ft05_after_each_of_64_tokens(depth: int) -> None:
    req = request("a", PROMPT, 64, seed=9)
    tokens = whole(req).tokens["a", 0]
    for k in range(64):
        rig = Rig(depth=depth)
        rig.add(replace(req, progress=Progress((tuple(tokens[:k]),))))
        rig.run()
        assert rig.tokens["a", 0] == tokens[k:], k
        assert rig.records["a"].generated_tokens == 64
        assert (rig.records["a"].prompt_tokens, rig.reasons["a", 0]) == (len(PROMPT), "length")


def test_choices_each_go_on_from_their_own_and_ended_ones_do_not() -> None:
    req = request("a", PROMPT, 12, seed=3, params=SamplingParams(n=4))
    before = whole(req)
    tokens = [before.tokens["a", index] for index in range(4)]
    rig = Rig()
    cut = (5, 12, 0, 11)
    done = Progress(tuple(tuple(each[:k]) for each, k in zip(tokens, cut, strict=True)), frozenset({1}))
    rig.add(replace(req, progress=done))
    rig.add(request("b", PROMPT, 5, seed=1))
    rig.run()
    for index in (0, 2, 3):
        assert rig.tokens["a", index] == tokens[index][cut[index] :]
    assert ("a", 1) not in rig.tokens
    assert rig.records["a"].generated_tokens == 48
    rig.check_finished("b")


def test_the_leader_may_be_the_one_that_ended() -> None:
    req = request("a", PROMPT, 8, seed=3, params=SamplingParams(n=2))
    tokens = [whole(req).tokens["a", index] for index in range(2)]
    rig = Rig()
    rig.add(replace(req, progress=Progress((tuple(tokens[0]), tuple(tokens[1][:3])), frozenset({0}))))
    rig.run()
    assert rig.tokens["a", 1] == tokens[1][3:]
    rig.check_account("a")


def test_log_probabilities_of_the_prompt_are_not_told_twice() -> None:
    req = request("a", PROMPT, 6, params=SamplingParams(prompt_logprobs=1))
    rig = Rig()
    rig.add(replace(req, progress=Progress(((7, 8),), num_prompt_logprobs=10)))
    rig.run()
    told = [event for step in rig.steps for event in step.prompt_logprobs]
    assert [event.position for event in told] == [11]
    assert sum(len(event.entries) for event in told) == len(PROMPT) - 11
