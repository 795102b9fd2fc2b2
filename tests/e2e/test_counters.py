"""SK-06: counters and seeds at the edges of 31, 32, 53 and 63 bits change nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.test_independence import PRECISIONS, VOCAB, Alone, House, load_as, request, tokens
from tokenmill.testing import checkpoints

EDGES = (2**31, 2**32, 2**53, 2**63, 2**64)


@pytest.fixture(scope="module", params=["reference", "int8"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LOGIT_STD", 2.4)  # undecided enough for seeds to matter
        folder: Path = checkpoints.make_checkpoint(
            tmp_path_factory.mktemp("counters"), "qwen2", vocab_size=VOCAB, max_context=256, intermediate_size=96,
            tokenizer=False,
        )  # fmt: skip
    return Alone(load_as(folder, PRECISIONS[request.param]))


@pytest.mark.parametrize("edge", EDGES)
def test_sk06_steps_and_sequences_are_counted_past_every_edge(alone: Alone, edge: int) -> None:
    """Ids begin four below the edge, so that requests live across it, through preemption, with choices, two deep."""
    house = House(alone._model, depth=2, num_blocks=40)
    house.scheduler.num_steps = edge - 4
    house.scheduler._seq_ids = count(edge - 4)
    requests = [request(i, tokens(9 + 7 * i, i), 7, n=1 + i % 3) for i in range(6)]

    def disturb(step: int) -> None:
        if step == 3 and house.scheduler.running:
            house.scheduler.preempt(house.scheduler.running[0], house.clock.now())

    house.run(requests, disturb=disturb)
    alone.check(house, requests)
    assert house.scheduler.num_steps > edge
    assert house.cache.pool.num_held == 0


@pytest.mark.parametrize("edge", EDGES)
def test_sk06_choices_have_seeds_past_every_edge(alone: Alone, edge: int) -> None:
    """Choice i draws as a request of its own with seed (seed + i) mod 2^64."""
    requests = [replace(request(0, tokens(20, 1), 8, n=4, temperature=2.0), seed=edge - 2)]
    house = House(alone._model)
    house.run(requests)
    alone.check(house, requests)
    assert len({tuple(house.answers["r0", index]) for index in range(4)}) == 4
