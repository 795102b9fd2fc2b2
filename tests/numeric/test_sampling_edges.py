"""NU-05, NU-06: extreme parameters stay finite; what cannot be sampled is an error of that row alone."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.numeric.sampling_support import random_logits, sequence
from tokenmill.core.params import SamplingParams
from tokenmill.runtime.sampling import Sample, Sampler
from tokenmill.runtime.sampling.filters import likeliest
from tokenmill.runtime.sampling.logprobs import LOGPROB_FLOOR, describe

VOCAB = 500


def one(params: SamplingParams, logits: torch.Tensor, **more: object) -> Sample:
    return Sampler().sample(logits[None].clone(), [sequence(params, len(logits), **more)])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-9, 1e-5, 1e-4])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"typical_p": 0.5}], ids=str)
def test_temperature_towards_zero_is_greedy(temperature: float, filters: dict[str, float]) -> None:
    logits = random_logits(40, VOCAB, spread=100.0)
    params = SamplingParams(temperature=temperature, **filters)  # type: ignore[arg-type]
    samples = Sampler().sample(logits.clone(), [sequence(params, VOCAB, seed=i) for i in range(40)])
    assert [s.token_id for s in samples] == logits.argmax(1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1e-9])
@pytest.mark.parametrize("vocab_size", [3, 500, 32003, 151936])
def test_ties_go_to_the_lowest_id(temperature: float, vocab_size: int) -> None:
    logits = torch.zeros(vocab_size)
    params = SamplingParams(temperature=temperature, logprobs=3)
    assert one(params, logits).token_id == 0
    logits[torch.tensor([1, vocab_size // 2, vocab_size - 1])] = 2.0
    sample = one(params, logits)
    assert sample.token_id == 1 and sample.logprobs is not None and sample.logprobs.rank == 1
    assert [t for t, _ in sample.logprobs.top] == sorted({1, vocab_size // 2, vocab_size - 1}) + [0] * (vocab_size == 3)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0},
        {"top_p": 1e-9},
        {"top_p": 1.0},
        {"top_k": 1},
        {"top_k": VOCAB},
        {"top_k": 2**31 - 1},
        {"min_p": 1.0},
        {"typical_p": 1e-9},
        {"repetition_penalty": 1e-6},
        {"repetition_penalty": 1e6},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0},
    ],
    ids=str,
)
def test_extreme_parameters_draw_a_token(options: dict[str, float]) -> None:
    output = [i % 50 for i in range(8000)]
    params = SamplingParams(**options, logprobs=2)  # type: ignore[arg-type]
    rows = [sequence(params, VOCAB, seed=i, output=output) for i in range(8)]
    logits = random_logits(8, VOCAB)
    for sample, row in zip(Sampler().sample(logits.clone(), rows), logits, strict=True):
        assert sample.error is None and sample.token_id is not None and sample.logprobs is not None
        assert math.isfinite(sample.logprobs.logprob)
        if options.get("top_k") == 1 or options.get("min_p") == 1.0 or options.get("top_p") == 1e-9:
            assert sample.token_id == row.argmax()


def test_occurrence_penalties_are_the_formula() -> None:
    logits = torch.zeros(VOCAB)
    logits[7], logits[8], logits[9], logits[10] = 10.0, 9.9, 9.0, 8.0
    output = [7, 7, 7, 8]  # 10 - 3·0.5 - 1 = 7.5; 9.9 - 0.5 - 1 = 8.4; 9 is next
    params = SamplingParams(temperature=0.0, presence_penalty=1.0, frequency_penalty=0.5)
    assert one(params, logits, output=output).token_id == 9
    assert one(params, logits, output=[*output, 9]).token_id == 8
    assert one(params, logits, prompt=[7, 8, 9], output=[]).token_id == 7, "the prompt does not count"


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.7}, {"frequency_penalty": 0.7, "presence_penalty": 0.1}])
def test_counts_kept_up_equal_counts_rebuilt(options: dict[str, float]) -> None:
    """A sequence that grew token by token and one made anew from its tokens (preemption) sample alike."""
    params = SamplingParams(temperature=0.8, logprobs=1, **options)  # type: ignore[arg-type]
    grown = sequence(params, VOCAB, prompt=[i * 7 % VOCAB for i in range(300)])
    for step in range(150):
        logits = random_logits(1, VOCAB, seed=step)
        anew = sequence(params, VOCAB, prompt=grown.token_ids[:300], output=grown.token_ids[300:])
        sample = Sampler().sample(logits.clone(), [grown])[0]
        assert sample == Sampler().sample(logits.clone(), [anew])[0]
        assert sample.token_id is not None
        grown.token_ids.append(sample.token_id)


def test_allowed_tokens_and_bans() -> None:
    logits = random_logits(1, VOCAB)[0]
    allowed = SamplingParams(temperature=0.0, allowed_token_ids=(400, 3, VOCAB + 9))
    assert one(allowed, logits).token_id == max((3, 400), key=lambda t: float(logits[t]))
    best = int(logits.argmax())
    assert one(SamplingParams(temperature=0.0, logit_bias={best: -100.0}), logits * 1000).token_id != best
    assert one(SamplingParams(temperature=0.0, logit_bias={17: 100.0, VOCAB: 5.0}), logits).token_id == 17


@pytest.mark.parametrize(
    ("params", "stops"),
    [
        (SamplingParams(allowed_token_ids=(VOCAB,)), ()),
        (SamplingParams(allowed_token_ids=(5,), logit_bias={5: -100.0}), ()),
        (SamplingParams(allowed_token_ids=(5,), bad_words_ids=((5,),)), ()),
        (SamplingParams(temperature=0.0, allowed_token_ids=(5,), min_tokens=1), (5,)),
        (SamplingParams(top_p=0.5, logit_bias=dict.fromkeys(range(VOCAB), -100.0)), ()),
    ],
)
def test_whole_vocabulary_banned_is_an_error_of_that_row(params: SamplingParams, stops: tuple[int, ...]) -> None:
    logits = random_logits(3, VOCAB)
    other = SamplingParams(temperature=0.9, logprobs=1)
    rows = [sequence(other, VOCAB, seed=1), sequence(params, VOCAB, stop_token_ids=stops), sequence(other, VOCAB)]
    first, bad, last = Sampler().sample(logits.clone(), rows)
    assert bad.token_id is None and bad.error is not None and "every token is banned" in bad.error
    assert first == one(other, logits[0], seed=1) and last == one(other, logits[2])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=4)])
@pytest.mark.parametrize("place", [0, 250, 499])
def test_logits_not_finite_are_an_error_of_that_row(value: float, params: SamplingParams, place: int) -> None:
    logits = random_logits(3, VOCAB)
    logits[1, place] = value
    rows = [sequence(params, VOCAB, seed=i) for i in range(3)]
    samples = Sampler().sample(logits.clone(), rows)
    assert samples[1].token_id is None and "not finite" in (samples[1].error or "")
    assert [samples[0].token_id, samples[2].token_id] == [
        one(params, logits[0], seed=0).token_id,
        one(params, logits[2], seed=2).token_id,
    ]


def test_a_ban_does_not_hide_nan() -> None:
    logits = random_logits(1, VOCAB)[0]
    logits[9] = math.nan
    assert one(SamplingParams(allowed_token_ids=(5, 6)), logits).error is not None


def test_impossible_tokens_are_never_drawn_and_reported_at_the_floor() -> None:
    logits = torch.full((VOCAB,), -math.inf)
    logits[[3, 4]] = 1.0
    for seed in range(50):
        sample = one(SamplingParams(logprobs=5, top_p=0.999), logits, seed=seed)
        assert sample.token_id in (3, 4) and sample.logprobs is not None
        assert sample.logprobs.top[2:] == ((0, LOGPROB_FLOOR), (1, LOGPROB_FLOOR), (2, LOGPROB_FLOOR))
        json.dumps(sample.logprobs.top, allow_nan=False)


def test_greedy_logprob_is_the_first_of_the_top_bit_for_bit() -> None:
    logits = random_logits(64, 32003)
    params = SamplingParams(temperature=0.0, logprobs=1)
    for sample in Sampler().sample(logits, [sequence(params, 32003) for _ in range(64)]):
        entry = sample.logprobs
        assert entry is not None and entry.top == ((entry.token_id, entry.logprob),) and entry.rank == 1


def test_ranks_number_the_likeliest_with_ties() -> None:
    logits = torch.randint(0, 6, (5, 40), generator=torch.Generator().manual_seed(0)).float()
    for token in range(40):
        for entry in describe(logits.clone(), [token] * 5, [40] * 5):
            assert entry.top[entry.rank - 1] == (token, entry.logprob)


@pytest.mark.parametrize("count", [1, 5, 39, 40, 99])
def test_likeliest_is_a_stable_sort(count: int) -> None:
    scores = torch.randint(0, 9, (50, 40), generator=torch.Generator().manual_seed(count)).float()
    scores[3] = -math.inf
    wanted = [sorted(range(40), key=lambda t: (-row[t], t))[:count] for row in scores.tolist()]
    assert likeliest(scores, count).tolist() == wanted
