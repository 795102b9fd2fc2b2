"""NU-07: what is drawn follows a float64 reference; reported log-probabilities are right to 1e-4."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.numeric.sampling_support import chi_square_p, random_logits, reference_distribution, sequence, softmax64
from tokenmill.core.params import SamplingParams
from tokenmill.runtime.sampling import Sampler
from tokenmill.runtime.sampling.filters import draw, narrow
from tokenmill.runtime.sampling.uniform import uniform

SAMPLERS = {
    "temperature": SamplingParams(temperature=1.0),
    "cold": SamplingParams(temperature=0.3),
    "hot": SamplingParams(temperature=2.0),
    "top_k": SamplingParams(top_k=5),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.05),
    "typical": SamplingParams(typical_p=0.6),
    "together": SamplingParams(temperature=1.5, top_k=30, top_p=0.95, min_p=0.02, typical_p=0.9),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_million_draws_follow_the_reference(name: str) -> None:
    """Each number from its own (seed, position), through the cumulative distribution of the filtered tokens."""
    params, total = SAMPLERS[name], 1_000_000
    logits = random_logits(1, 48, seed=3, spread=2.0)
    expected = reference_distribution(logits[0].double().numpy(), params)
    scaled = (logits - logits.max()) / params.temperature
    rows = narrow(scaled, scaled.softmax(1), [params], 48)
    drawn = []
    for first in range(0, total, 100_000):
        uniforms = torch.from_numpy(uniform([77] * 100_000, range(first, first + 100_000)))[:, None]
        columns = draw(rows.weights.expand(100_000, -1).contiguous(), uniforms)
        drawn.append(rows.token_ids[0, columns].numpy())
    assert chi_square_p(np.concatenate(drawn), expected) > 0.01


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("vocab_size", [48, 1000, 5000])
def test_the_sampler_draws_by_seed(name: str, vocab_size: int) -> None:
    """The same through ``Sampler``, one seed a row, on vocabularies that are tried in one, two and three widths."""
    params, count = SAMPLERS[name], 3000 if vocab_size < 5000 else 600
    logits = random_logits(1, vocab_size, seed=vocab_size, spread=1.0 if vocab_size == 5000 else 2.0)
    expected = reference_distribution(logits[0].double().numpy(), params)
    rows = [sequence(params, vocab_size, seed=seed) for seed in range(count)]
    samples = Sampler().sample(logits.expand(count, -1).contiguous(), rows)
    assert chi_square_p(np.array([sample.token_id for sample in samples]), expected) > 0.01


def test_uniforms_are_uniform_and_unrelated() -> None:
    by_position = uniform([5] * 200_000, range(200_000))
    by_seed = uniform(range(200_000), [5] * 200_000)
    for numbers in (by_position, by_seed):
        assert numbers.min() >= 0.0 and numbers.max() < 1.0
        cells = (numbers * 100).astype(np.int64)
        assert chi_square_p(cells, np.full(100, 0.01)) > 0.01
        pairs = (numbers[:-1] * 10).astype(np.int64) * 10 + (numbers[1:] * 10).astype(np.int64)
        assert chi_square_p(pairs[::2], np.full(100, 0.01)) > 0.01
    assert abs(np.corrcoef(by_position, by_seed)[0, 1]) < 0.01


def test_the_formula_of_the_documentation() -> None:
    """The docstring's formula in plain integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    for seed, position in [(0, 0), (1, 2), (2**64 - 1, 10**6), (-1, 7)]:
        bits = mix((mix((seed + gamma) % 2**64) + (position + 1) * gamma) % 2**64)
        assert uniform([seed], [position])[0] == (bits >> 12) / 2**52
    # the first output of SplitMix64 started at 0, as published with xoshiro
    assert mix(gamma) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("vocab_size", [48, 32003])
def test_logprobs_are_those_of_the_untouched_logits(vocab_size: int) -> None:
    params = SamplingParams(temperature=0.7, top_k=5, repetition_penalty=1.3, logit_bias={3: 5.0}, logprobs=20)
    logits = random_logits(8, vocab_size, seed=1, spread=4.0)
    before = logits.clone()
    samples = Sampler().sample(logits, [sequence(params, vocab_size, seed=i) for i in range(8)])
    for row, sample in zip(before.double().numpy(), samples, strict=True):
        exact = np.log(softmax64(row))
        entry = sample.logprobs
        assert entry is not None and entry.token_id == sample.token_id
        assert abs(entry.logprob - exact[entry.token_id]) < 1e-4
        assert entry.rank == 1 + (row > row[entry.token_id]).sum()
        assert [t for t, _ in entry.top] == sorted(range(vocab_size), key=lambda t: (-row[t], t))[:20]
        assert max(abs(value - exact[t]) for t, value in entry.top) < 1e-4
