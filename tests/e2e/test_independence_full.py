"""CC-01 at its full size: 500 prompts of up to 4,000 tokens, at concurrency 1 to 256, bit for bit.

Takes minutes: ``make test-heavy`` runs it.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.e2e.test_independence import PRECISIONS, VOCAB, House, Model, load_as, request, tokens
from tokenmill.core.request import Request
from tokenmill.testing import checkpoints

NUM_PROMPTS = 500
LONGEST = 4000
STOP_TOKENS = frozenset(range(6))
"""Six tokens of 307: some answers stop there, the others run to their length."""


def prompts() -> list[Request]:
    """Lengths spread evenly over their logarithm: most are short, some very long."""
    rng = random.Random(1)
    lengths = [round(LONGEST ** rng.random()) for _ in range(NUM_PROMPTS - 1)] + [LONGEST]
    made = [request(i, tokens(length, i), rng.randint(2, 90)) for i, length in enumerate(lengths)]
    return [replace(req, stop_token_ids=STOP_TOKENS) if i % 2 else req for i, req in enumerate(made)]


def run(model: Model, requests: list[Request], concurrency: int) -> House:
    """All of ``requests``, arriving at random, so many of them together."""
    house = House(model, num_blocks=20_000, max_seqs=concurrency, chunk=max(512, 64 * concurrency), max_steps=200_000)
    rng = random.Random(concurrency)
    most = 0

    def look(step: int) -> None:
        nonlocal most
        most = max(most, len(house.scheduler.running))

    house.run(requests, arrivals=[rng.randrange(0, 1 + 2000 // concurrency) for _ in requests], disturb=look)
    assert most >= 0.95 * concurrency, "between steps, when some have ended and none has taken their place"
    assert not house.failures
    return house


def usage(house: House) -> dict[str, tuple[int, int]]:
    return {name: (record.prompt_tokens, record.generated_tokens) for name, record in house.records.items()}


@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["reference", "int8"])
def test_cc01_at_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Tokens, log-probabilities, finish reasons and usage are those of one request at a time."""
    monkeypatch.setattr(checkpoints, "LOGIT_STD", 2.4)  # undecided enough for seeds to matter
    shape = {"vocab_size": VOCAB, "max_context": 4096 + 96, "hidden_size": 32, "num_layers": 1}
    folder = checkpoints.make_checkpoint(tmp_path, "llama", tokenizer=False, **shape)
    model = load_as(folder, PRECISIONS[precision])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        requests = prompts()
        alone = run(model, requests, 1)
        assert len(alone.answers) == len(alone.records) == NUM_PROMPTS
        assert min(Counter(alone.ended.values()).values()) > 50, "both ends are meant to occur"
        for concurrency in (2, 8, 64, 256):
            house = run(model, requests, concurrency)
            assert house.answers == alone.answers, concurrency
            assert house.ended == alone.ended, concurrency
            assert usage(house) == usage(alone), concurrency
    finally:
        torch.set_num_threads(before)
