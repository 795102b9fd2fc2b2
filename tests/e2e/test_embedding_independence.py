"""CC-18 of a real (tiny) model: an embedding's bits do not depend on company, chunks, cached prefixes or preemption.

For the reference kernels and the fast ones in every precision; the pool is poisoned (see ``test_independence.py``).
"""

from __future__ import annotations

import random
import struct

import pytest
import torch

from tests.e2e.test_independence import PRECISIONS, House, Model, load_as, request, tokens
from tests.e2e.test_independence import VOCAB as VOCAB
from tokenmill.core.pooling import NO_TOKENS, Pooling
from tokenmill.core.request import Request
from tokenmill.testing import checkpoints

POOLINGS = (Pooling("last"), Pooling("mean"), Pooling("last", 20), Pooling("mean", 7, normalize=False))


@pytest.fixture(scope="module", params=["reference", "bf16", "int8", "w4a16", "int8-kv8"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = checkpoints.make_checkpoint(
        tmp_path_factory.mktemp("embeddings"), "qwen3", vocab_size=VOCAB, max_context=256, tokenizer=False
    )
    torch.set_num_threads(1)
    return load_as(folder, PRECISIONS[request.param])


def wanted(number: int, length: int) -> Request:
    pooling = POOLINGS[number % len(POOLINGS)]
    return Request(f"e{number}", tokens(length, number % 8), NO_TOKENS, 0, pooling=pooling)


def alone(model: Model, requests: list[Request]) -> dict[str, bytes]:
    return {req.id: run_alone(model, req) for req in requests}


def run_alone(model: Model, req: Request) -> bytes:
    house = House(model, num_blocks=16)
    house.run([req])
    return house.embeddings[req.id]


@pytest.mark.parametrize(("chunk", "depth"), [(7, 1), (64, 2), (512, 1)])
def test_cc18_company_and_chunks(model: Model, chunk: int, depth: int) -> None:
    """Beside requests that generate, in chunks, from cached prefixes, with steps in flight."""
    requests = [wanted(i, 3 + 9 * i) for i in range(12)]
    others = [request(100 + i, tokens(5 + 10 * i, 50 + i)) for i in range(4)]
    house = House(model, chunk=chunk, depth=depth, max_seqs=9)
    house.run([*requests[:6], *others, *requests[6:]])
    assert not house.failures
    assert house.embeddings == alone(model, requests)
    for req in requests:
        values = struct.unpack(f"<{len(house.embeddings[req.id]) // 4}f", house.embeddings[req.id])
        assert req.pooling is not None
        assert len(values) == (req.pooling.dimensions or 64)
        if req.pooling.normalize:
            assert abs(sum(v * v for v in values) - 1) < 1e-5


def test_cc18_preempted(model: Model) -> None:
    requests = [wanted(i, 60 + i) for i in range(8)]
    house = House(model, chunk=16, max_seqs=4)
    rng = random.Random(3)

    def disturb(step: int) -> None:
        if house.scheduler.running and step % 3 == 2 and house.scheduler.num_preemptions < 12:
            house.scheduler.preempt(rng.choice(house.scheduler.running), house.clock.now())

    house.run(requests, disturb=disturb)
    assert house.scheduler.num_preemptions == 12
    assert house.embeddings == alone(model, requests)


def test_a_prefix_that_is_cached_gives_the_same_bits(model: Model) -> None:
    prompt = tokens(70, 1)
    house = House(model)
    for name in ("cold", "warm"):
        house.run([Request(name, prompt, NO_TOKENS, 0, pooling=Pooling("last"))])
    assert (house.records["cold"].cached_tokens, house.records["warm"].cached_tokens) == (0, 64)
    assert house.embeddings["cold"] == house.embeddings["warm"]
