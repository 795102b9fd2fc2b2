"""Mission row E12: a token's logits are the same bits alone and in company, whole and in chunks, in any blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.numeric.models_support import Driver, random_tokens
from tokenmill.models.decoder import Decoder
from tokenmill.models.load import load_model
from tokenmill.testing.checkpoints import make_checkpoint

LENGTH = 150


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Head counts 6/2, 4/4, 7/1 and 4/2: every way that heads fill a query tile. And experts, in one layer of two."""
    heads = {"llama": (6, 2), "mistral": (4, 4), "qwen2": (7, 1)}.get(request.param, (4, 2))
    more = {"mistral": {"sliding_window": 21}, "qwen3_moe": {"mlp_only_layers": [0]}}.get(request.param, {})
    folder = make_checkpoint(
        tmp_path_factory.mktemp(request.param),
        request.param,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        vocab_size=520,
        tokenizer=False,
        **more,
    )
    return load_model(folder)


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_chunks_and_block_sizes(model: Decoder) -> None:
    tokens = random_tokens(LENGTH, 520)
    whole = Driver(model).run(tokens)
    for block_size in (8, 16, 32, 64):
        for chunks in ((1,) * 9, (64, 64), (63, 2, 1), (5, 7, 11, 13, 17, 19, 23), (100, 1)):
            driver = Driver(model, block_size=block_size, num_blocks=64, seed=block_size)
            assert torch.equal(driver.run(tokens, chunks), whole), (block_size, chunks)


def test_company(model: Decoder) -> None:
    """Decode alone, then among 1 to 30 others of other lengths, first, last and in the middle."""
    tokens = random_tokens(LENGTH, 520)
    alone = Driver(model).run(tokens)
    for others in (1, 4, 30):
        for place in (0, others // 2 + 1):
            driver = Driver(model, num_blocks=1024, seed=others)
            prompts = {i: random_tokens(1 + 7 * i % 90, 520, seed=i) for i in range(others)}
            driver.step({-1: tokens[:-3], **prompts})
            for offset in (3, 2, 1):
                rows: list[tuple[int, list[int]]] = [(i, [i]) for i in range(others)]
                rows.insert(place, (-1, [tokens[-offset]]))
                logits = driver.step(dict(rows))[-1]
                assert torch.equal(logits[0], alone[-offset]), (others, place)


def test_prefix_shared(model: Decoder) -> None:
    """A sequence that continues on blocks that another one filled."""
    tokens = random_tokens(LENGTH, 520)
    driver = Driver(model)
    whole = driver.run(tokens)
    driver.tables[7], driver.computed[7] = driver.tables[0][:4], 4 * driver.block_size
    assert torch.equal(driver.step({7: tokens[64:]})[7], whole[64:])


def test_what_others_left_in_the_cache(model: Decoder) -> None:
    """Slots of the own last block beyond the sequence, and all other blocks, hold NaN: nothing gets in."""
    tokens = random_tokens(LENGTH, 520)
    clean = Driver(model).run(tokens, (70, 1, 3))
    driver = Driver(model)
    for tensor in (*driver.kv.keys, *driver.kv.values):
        tensor.fill_(float("nan"))
    assert torch.equal(driver.run(tokens, (70, 1, 3)), clean)
