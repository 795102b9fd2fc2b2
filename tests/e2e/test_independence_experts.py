"""``test_independence`` for a mixture of experts: who else is sent to an expert is not to be seen in an answer."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from tests.e2e.test_independence import PRECISIONS, VOCAB, Alone, House, Model, load_as, mixed_requests, request, tokens
from tokenmill.testing import checkpoints


@pytest.fixture(scope="module", params=["reference", "bf16", "int8", "w4a16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Experts in the second of two layers; of seven, three for a token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LOGIT_STD", 2.4)  # undecided enough for seeds to matter
        folder = checkpoints.make_checkpoint(
            tmp_path_factory.mktemp("experts"), "qwen3_moe", vocab_size=VOCAB, max_context=256, intermediate_size=96,
            num_experts=7, tokenizer=False, mlp_only_layers=[0],
        )  # fmt: skip
    return load_as(folder, PRECISIONS[request.param])


@pytest.fixture(scope="module")
def alone(model: Model) -> Alone:
    return Alone(model)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("max_seqs", "depth"), [(2, 1), (33, 2)])
def test_cc01_company(model: Model, alone: Alone, max_seqs: int, depth: int) -> None:
    requests = mixed_requests(32, 60)
    rng = random.Random(max_seqs)
    house = House(model, max_seqs=max_seqs, depth=depth, chunk=200)
    house.run(requests, arrivals=[rng.randrange(0, 20) for _ in requests])
    alone.check(house, requests)


@pytest.mark.parametrize("chunk", [7, 64])
def test_cc02_chunks_on_two_threads(model: Model, alone: Alone, chunk: int) -> None:
    requests = [request(100 + i, tokens(length, 100 + i), 4) for i, length in enumerate((33, 130, 64, 5, 17))]
    for req in requests:
        alone(req)
    torch.set_num_threads(2)
    house = House(model, chunk=chunk, block_size=16)
    house.run(requests)
    alone.check(house, requests)


def test_cc04_preempted_at_random(model: Model, alone: Alone) -> None:
    requests = mixed_requests(12, 60, seed=3)
    house, rng = House(model, chunk=64, depth=2), random.Random(7)

    def disturb(step: int) -> None:
        for seq in house.scheduler.running:
            if rng.random() < 0.1:
                house.scheduler.preempt(seq, house.clock.now())

    house.run(requests, disturb=disturb)
    assert house.scheduler.num_preemptions > 5
    alone.check(house, requests)
