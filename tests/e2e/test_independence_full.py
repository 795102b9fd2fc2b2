"""CC-01 at its full size: 500 prompts of up to 4,000 tokens, at concurrency 1 to 256, bit for bit.

Takes minutes: ``make test-heavy`` runs it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.e2e.test_independence import VOCAB, Answer, House, request, tokens
from tokenmill.core.request import Request
from tokenmill.models.decoder import Decoder
from tokenmill.models.load import load_model
from tokenmill.testing.checkpoints import make_checkpoint

NUM_PROMPTS = 500
LONGEST = 4000


def prompts() -> list[Request]:
    """Lengths spread evenly over their logarithm: most are short, some very long."""
    rng = random.Random(1)
    lengths = [round(LONGEST ** rng.random()) for _ in range(NUM_PROMPTS - 1)] + [LONGEST]
    return [request(i, tokens(length, i), rng.randint(2, 12)) for i, length in enumerate(lengths)]


def run(model: Decoder, requests: list[Request], concurrency: int) -> tuple[dict[tuple[str, int], Answer], House]:
    house = House(model, num_blocks=6000, max_seqs=concurrency, max_steps=200_000)
    rng = random.Random(concurrency)
    arrivals = [rng.randrange(0, 1 + 2000 // concurrency) for _ in requests]
    return house.run(requests, arrivals=arrivals), house


@pytest.mark.heavy
def test_cc01_at_full_size(tmp_path: Path) -> None:
    shape = {"vocab_size": VOCAB, "max_context": 4096, "hidden_size": 32, "num_layers": 1}
    folder = make_checkpoint(tmp_path, "llama", tokenizer=False, **shape)
    model = load_model(folder)
    model.lm_head.weight.mul_(0.15)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        requests = prompts()
        alone, quiet = run(model, requests, 1)
        for concurrency in (2, 8, 64, 256):
            answers, house = run(model, requests, concurrency)
            assert not house.failures
            assert answers == alone, concurrency
            assert house.ended == quiet.ended
            for name, record in house.records.items():
                wanted = quiet.records[name]
                assert (record.prompt_tokens, record.generated_tokens) == (
                    wanted.prompt_tokens,
                    wanted.generated_tokens,
                )
    finally:
        torch.set_num_threads(before)
