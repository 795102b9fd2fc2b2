"""What a row draws and reports is bit-identical alone and in company (CC-14), with one thread and with two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.numeric.sampling_support import random_logits, sequence
from tokenmill.core.params import SamplingParams
from tokenmill.runtime.sampling import Sample, SampledSequence, Sampler
from tokenmill.runtime.sampling.filters import draw

ROWS = 64


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def wish(row: int) -> SamplingParams:
    """Every row asks for something else; logprobs on two thirds of them."""
    wishes: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 40},
        {"typical_p": 0.9, "temperature": 0.5},
        {"temperature": 1.3, "min_p": 0.05, "presence_penalty": 0.5},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "top_p": 0.95},
        {"allowed_token_ids": tuple(range(0, 2000, 7)), "logit_bias": {7: 3.0, 14: -100.0}},
        {"bad_words_ids": ((5,), (3, 9)), "min_tokens": 9},
        {"temperature": 1.9, "top_p": 0.99},
    ]
    return SamplingParams(**wishes[row % len(wishes)], logprobs=[None, 0, 5][row % 3])  # type: ignore[arg-type]


def made(row: int, vocab_size: int) -> SampledSequence:
    output = [(row * 31 + i * i) % 999 for i in range(row % 8)]
    return sequence(wish(row), vocab_size, seed=row * row, output=output, stop_token_ids=(0, 4))


def sample(logits: Tensor, rows: list[int]) -> list[Sample]:
    return Sampler().sample(logits[rows].clone(), [made(row, logits.shape[1]) for row in rows])


@pytest.mark.parametrize("vocab_size", [1001, 4096, 32003, 151936])
def test_alone_and_in_company(vocab_size: int, threads: int) -> None:
    rows = list(range(ROWS if vocab_size < 10_000 else 20))
    logits = random_logits(len(rows), vocab_size, seed=vocab_size)
    alone = [sample(logits, [row])[0] for row in rows]
    assert all(one.error is None for one in alone)
    generator = torch.Generator().manual_seed(threads)
    for size in [n for n in (2, 3, 5, 8, 17, 33, 63, 64) if n <= len(rows)]:
        company = torch.randperm(len(rows), generator=generator)[:size].tolist()
        assert sample(logits, company) == [alone[row] for row in company], f"in a batch of {size}"


def test_threads_do_not_matter() -> None:
    logits = random_logits(20, 151936)
    before = torch.get_num_threads()
    outcomes = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        outcomes.append(sample(logits, list(range(20))))
    torch.set_num_threads(before)
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("vocab_size", [7, 33, 1000, 4096, 32003, 151936])
def test_the_operations_relied_upon(vocab_size: int, threads: int) -> None:
    """softmax, log_softmax, float64 cumsum and amax treat a row alike at every size and place of the batch."""
    rows = 16 if vocab_size > 10_000 else 64
    logits = random_logits(rows, vocab_size, spread=8.0)

    def operations(x: Tensor) -> list[Tensor]:
        return [x.softmax(1), x.log_softmax(1), x.cumsum(1, dtype=torch.float64), x.amax(1)]

    whole = operations(logits)
    for size in [n for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 63) if n < rows]:
        for first in {0, 1, rows - size}:
            part = slice(first, first + size)
            for got, wanted in zip(operations(logits[part].clone()), whole, strict=True):
                assert torch.equal(got, wanted[part])


def test_a_draw_takes_the_first_column_past_the_mark() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    marks = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2.0**-52], dtype=torch.float64)
    drawn = draw(weights.expand(len(marks), -1).contiguous(), marks[:, None])
    assert drawn.tolist() == [1, 1, 3, 3, 4, 4]
