"""Stages and filters against Hugging Face's logits processors: equal logits, equal sets of kept tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.numeric.sampling_support import random_logits, sequence
from tokenmill.core.params import SamplingParams
from tokenmill.runtime.sampling.filters import narrow
from tokenmill.runtime.sampling.stages import STAGES, SampledSequence

transformers = pytest.importorskip("transformers")
VOCAB = 700
PROMPT, OUTPUT = [5, 9, 9, 42, 7], [8, 42, 8, 8, 699]
TOKENS = torch.tensor([PROMPT + OUTPUT])


def staged(logits: Tensor, seq: SampledSequence) -> Tensor:
    scores = logits.clone()
    for state in seq.stages:
        type(state).apply(scores, list(range(len(scores))), [state] * len(scores))
    return scores


def seq(**options: object) -> SampledSequence:
    stops = options.pop("stop_token_ids", ())
    params = SamplingParams(**options)  # type: ignore[arg-type]
    return sequence(params, VOCAB, prompt=PROMPT, output=OUTPUT, stop_token_ids=stops)  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty(penalty: float) -> None:
    logits = random_logits(4, VOCAB)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(TOKENS.expand(4, -1), logits.clone())
    torch.testing.assert_close(staged(logits, seq(repetition_penalty=penalty)), theirs, rtol=1e-6, atol=0)


def test_bad_words() -> None:
    words = [[3], [699, 17], [8, 699, 18], [7, 699, 19], [8, 8, 699, 20], [699, 699]]
    logits = random_logits(2, VOCAB)
    theirs = transformers.NoBadWordsLogitsProcessor(words)(TOKENS.expand(2, -1), logits.clone())
    ours = staged(logits, seq(bad_words_ids=tuple(map(tuple, words))))
    assert torch.equal(ours, theirs)
    assert ours[0].isinf().nonzero()[:, 0].tolist() == [3, 17, 18, 20, 699]


@pytest.mark.parametrize("min_tokens", [0, 5, 6, 50])
def test_min_tokens(min_tokens: int) -> None:
    logits = random_logits(2, VOCAB)
    processor = transformers.MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, [4, 6], device="cpu")
    theirs = processor(TOKENS.expand(2, -1), logits.clone())
    assert torch.equal(staged(logits, seq(min_tokens=min_tokens, stop_token_ids=(4, 6))), theirs)


def test_logit_bias() -> None:
    logits = random_logits(2, VOCAB)
    processor = transformers.SequenceBiasLogitsProcessor([[[3], 2.5], [[600], -7.0]])
    theirs = processor(TOKENS.expand(2, -1), logits.clone())
    torch.testing.assert_close(staged(logits, seq(logit_bias={3: 2.5, 600: -7.0})), theirs)


FILTERED = [
    SamplingParams(top_k=1),
    SamplingParams(top_k=50),
    SamplingParams(top_p=0.1),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.999),
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=0.001),
    SamplingParams(typical_p=0.2),
    SamplingParams(typical_p=0.95),
    SamplingParams(temperature=0.5, top_k=40, top_p=0.9),
    SamplingParams(temperature=1.7, top_k=100, top_p=0.95, min_p=0.01, typical_p=0.9),
]


def their_kept(logits: Tensor, params: SamplingParams) -> Tensor:
    chain = [transformers.TemperatureLogitsWarper(float(params.temperature))]
    if params.top_k:
        chain.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(transformers.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        chain.append(transformers.MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        chain.append(transformers.TypicalLogitsWarper(params.typical_p))
    scores = logits.clone()
    for warper in chain:
        scores = warper(None, scores)
    return scores.isfinite()


@pytest.mark.parametrize("params", FILTERED, ids=str)
@pytest.mark.parametrize("width", [VOCAB, 256])
def test_kept_tokens(params: SamplingParams, width: int) -> None:
    logits = random_logits(32, VOCAB, seed=9)
    scores = (logits - logits.amax(1, keepdim=True)) / params.temperature
    rows = narrow(scores, scores.softmax(1), [params] * 32, width)
    ours = torch.zeros(32, VOCAB, dtype=torch.bool).scatter_(1, rows.token_ids, rows.weights > 0)
    settled = (rows.weights[:, -1] == 0) if width < VOCAB and params.typical_p == 1 else torch.tensor(width == VOCAB)
    same = (ours == their_kept(logits, params)).all(1)
    assert bool((same | ~settled).all())
    assert width < VOCAB or bool(same.all())


def test_every_stage_is_compared_somewhere() -> None:
    """A stage added without a test here, in test_sampling_edges.py or in tests/grammar should be noticed."""
    assert [stage.__name__ for stage in STAGES] == [
        "AllowedTokens",
        "LogitBias",
        "BadWords",
        "MinTokens",
        "RepetitionPenalty",
        "OccurrencePenalty",
        "GrammarMask",
    ]
