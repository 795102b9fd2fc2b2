"""Sampling on the device: what is kept equals the reference's, to the token; a draw depends on its row alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

import triton
import triton.language as tl

from tests.triton.conftest import HAVE_GPU
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.kernels.triton.sample import sample
from tokenmill.kernels.triton.sample_kernels import _gumbel
from tokenmill.runtime.gpu.sampling import DeviceSampling, on_device
from tokenmill.runtime.sampling import SampledSequence, Sampler
from tokenmill.runtime.sampling.filters import narrow


def prepare(params: Sequence[SamplingParams], vocab_size: int, device: torch.device, **sizes: int) -> DeviceSampling:
    """A state in which slot i belongs to a sequence of tokens 1, 2, 3 (two of the prompt) and ``params[i]``, seed i."""
    state = DeviceSampling(sizes.get("max_rows", len(params)), len(params), vocab_size, device)
    for slot, wish in enumerate(params):
        assert state.add(slot, wish, slot, [1, 2, 3], 2)
    return state


def choose(
    state: DeviceSampling, logits: Tensor, slots: Sequence[int], positions: Sequence[int] | None = None
) -> list[int]:
    out = torch.full((len(logits),), -7, dtype=torch.int32, device=logits.device)
    draws = state.stage(slots, [3] * len(slots) if positions is None else positions, len(logits))
    sample(logits, draws, out)
    return list(out.tolist())


def scaled(logits: Tensor, temperature: float) -> Tensor:
    return (logits - logits.amax(1, keepdim=True)).div_(torch.tensor(temperature))


def expected_kept(logits: Tensor, params: SamplingParams) -> list[int]:
    """What the reference keeps of one row."""
    scores = scaled(logits[None], params.temperature)
    rows = narrow(scores, scores.softmax(1), [params], logits.shape[0])
    return sorted(rows.token_ids[rows.weights > 0].tolist())


def kept(state: DeviceSampling, logits: Tensor, row: int, params: SamplingParams) -> list[int]:
    """What the device kept of a row, by the cut it found (if it looked for one)."""
    is_cut = 0 < params.top_k < len(logits) or params.top_p < 1
    cut = int(state._scratch.cuts[row]) if is_cut else -(2**63)
    score = scaled(logits[None], params.temperature)[0] + 0.0
    bits = score.view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    ids = torch.arange(len(logits))
    rank = (ordered << 32) | (ids ^ 0x7FFFFFFF)
    return ids[(rank >= cut) & (score.exp() >= params.min_p) & (score > -math.inf)].tolist()


FILTERS = (
    {"top_k": 7},
    {"top_k": 1400},
    {"top_k": 5000},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"top_p": 1e-9},
    {"top_k": 1200, "top_p": 0.9, "temperature": 2.0},
    {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.05, "temperature": 0.5},
)


def logits_of(kind: str, num_rows: int, vocab_size: int) -> Tensor:
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(3))
    if kind == "peaked":
        return logits * 6
    if kind == "tied":
        return logits.mul(2).round() / 2
    if kind == "banned":
        return torch.where(torch.arange(vocab_size) % 3 == 0, logits * 2, -math.inf)
    return logits


@pytest.mark.parametrize(("kind", "vocab_size"), [("wide", 2100), ("peaked", 900), ("tied", 900), ("banned", 900)])
def test_what_is_kept_is_what_the_reference_keeps(kind: str, vocab_size: int, device: torch.device) -> None:
    """With 2,100 tokens a row takes two programs, and some searches do not end with the first pivots."""
    params = [SamplingParams(**filters) for filters in FILTERS]
    logits = logits_of(kind, len(params), vocab_size)
    state = prepare(params, vocab_size, device)
    tokens = choose(state, logits.to(device), range(len(params)))
    for row, wish in enumerate(params):
        expected = expected_kept(logits[row], wish)
        assert kept(state, logits[row], row, wish) == expected, wish
        assert tokens[row] in expected


def test_ties_beyond_what_can_be_copied_out(device: torch.device) -> None:
    """Equal logits, more than the search's last part has room for: the lowest ids are kept."""
    vocab_size = 1300
    params = [SamplingParams(top_k=1100), SamplingParams(top_p=0.9), SamplingParams(top_k=1200, top_p=0.5)]
    logits = torch.zeros(3, vocab_size)
    logits[:, 10] = -1.0
    state = prepare(params, vocab_size, device)
    choose(state, logits.to(device), range(3))
    for row, wish in enumerate(params):
        assert kept(state, logits[row], row, wish) == expected_kept(logits[row], wish)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_temperature_zero_takes_the_likeliest_of_lowest_id(dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[1, [4000, 30, 2500]] = 9.0
    logits[2] = -torch.arange(5000.0).abs().to(dtype)
    logits[3], logits[3, 4], logits[3, 3] = -2.0, 0.0, -0.0
    state = prepare([SamplingParams(temperature=temperature) for temperature in (0.0, 1e-6, 0.0, 0.0)], 5000, device)
    tokens = choose(state, logits.to(device), range(4))
    assert tokens == [int(logits[0].float().argmax()), 30, 0, 3]
    assert state.last_tokens.tolist() == tokens


def test_what_is_not_finite_gets_no_token_and_hurts_nobody(device: torch.device) -> None:
    params = [SamplingParams(top_k=3)] * 4 + [
        SamplingParams(temperature=0.0, repetition_penalty=1e-6),
        SamplingParams(),
    ]
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0)).to(device)
    state = prepare(params, 3000, device)
    alone = choose(state, logits, range(6))
    assert all(token >= 0 for token in alone)
    broken = logits.clone()
    broken[0, 2900], broken[1, 17], broken[2] = math.nan, math.inf, -math.inf
    broken[4, 2] = 1e38  # overflows under its penalty: token 2 is in the prompt
    state = prepare(params, 3000, device)
    assert choose(state, broken, range(6)) == [-1, -1, -1, alone[3], -1, alone[5]]


def test_penalties_follow_the_reference_token_by_token(device: torch.device) -> None:
    vocab_size, steps = 40, 6
    wishes = (
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7, "frequency_penalty": 0.4},
        {"repetition_penalty": 0.8, "presence_penalty": -1.0, "frequency_penalty": 0.3},
        {},
    )
    params = [SamplingParams(temperature=0.0, **wish) for wish in wishes]
    prompt = [3, 3, 9, 17, 99]  # the model lacks 99
    sequences = [SampledSequence([*prompt, 5], len(prompt), wish, 0, frozenset(), vocab_size) for wish in params]
    state = DeviceSampling(8, 4, vocab_size, device)
    for slot, seq in enumerate(sequences):
        assert state.add(slot, seq.params, 0, seq.token_ids, seq.prompt_len)
    logits = torch.randn(len(params), vocab_size, generator=torch.Generator().manual_seed(1))
    for step in range(steps):  # the same logits again and again: only penalties change what comes
        expected = [s.token_id for s in Sampler().sample(logits.clone(), sequences)]
        length = len(sequences[0].token_ids)
        assert choose(state, logits.to(device), range(4), [length] * 4) == expected, step
        for seq, token in zip(sequences, expected, strict=True):
            assert token is not None
            seq.token_ids.append(token)
    state.remove(1)
    assert state.add(1, sequences[1].params, 0, sequences[1].token_ids, len(prompt)), "it comes back after a preemption"
    expected = [s.token_id for s in Sampler().sample(logits.clone(), sequences)]
    assert choose(state, logits.to(device), range(4)) == expected


def test_a_token_depends_on_its_row_seed_and_position_alone(device: torch.device) -> None:
    wishes = ({}, {"temperature": 0.0}, {"top_k": 50}, {"top_p": 0.8, "min_p": 0.01}, {"top_k": 100, "top_p": 0.9})
    params = [SamplingParams(**wish) for wish in wishes]
    logits = torch.randn(5, 2500, generator=torch.Generator().manual_seed(2)).to(device) * 2
    state = prepare(params, 2500, device, max_rows=8)
    positions = [3, 4, 5, 6, 7]
    tokens = choose(state, logits, range(5), positions)
    for row in range(5):
        assert choose(state, logits[row : row + 1], [row], positions[row : row + 1]) == [tokens[row]]
    order = [4, 2, 0, 1, 3]
    padded = torch.cat((logits[order], torch.full((3, 2500), math.nan, device=device)))
    found = choose(state, padded, order, [positions[row] for row in order])
    assert found == [tokens[row] for row in order] + [-1] * 3
    shuffled_slots = prepare([params[0]] * 2, 2500, device)
    shuffled_slots.remove(1)
    assert shuffled_slots.add(1, params[0], 0, [1], 1), "the seed of slot 0"
    assert choose(shuffled_slots, logits[:1], [1], positions[:1]) == [tokens[0]]


def test_seeds_and_positions_give_other_tokens(device: torch.device) -> None:
    state = prepare([SamplingParams()] * 3, 1024, device, max_rows=6)
    logits = torch.zeros(6, 1024, device=device)
    tokens = choose(state, logits, [0, 1, 2, 0, 1, 2], [3, 3, 3, 4, 4, 4])
    assert len(set(tokens)) == 6
    wide = prepare([SamplingParams()] * 2, 1024, device, max_rows=2)
    for slot, seed in enumerate((5, 5 + 2**32)):
        wide.remove(slot)
        assert wide.add(slot, SamplingParams(), seed, [1], 1)
    assert len(set(choose(wide, logits[:2], [0, 1]))) == 2, "all 64 bits of a seed count"


def test_draws_follow_the_kept_probabilities(device: torch.device) -> None:
    """Chi-square over four kept tokens; 16.27 is exceeded once in a thousand times, and the seeds are fixed."""
    num_rows, rounds = (2048, 20) if HAVE_GPU else (60, 2)
    logits = torch.tensor([1.0, 0.0, -0.5, 0.7, -3.0, -4.0]).expand(num_rows, -1).contiguous().to(device)
    params = SamplingParams(min_p=0.1, temperature=0.8)
    state = prepare([params] * num_rows, 6, device)
    ids = expected_kept(logits[0].cpu(), params)
    assert len(ids) == 4
    seen = torch.zeros(6)
    for position in range(rounds):
        tokens = choose(state, logits, range(num_rows), [position] * num_rows)
        seen += torch.bincount(torch.tensor(tokens), minlength=6)
    share = (logits[0, ids].cpu() / 0.8).softmax(0)
    expected = share * num_rows * rounds
    assert float(seen.sum()) == float(seen[ids].sum())
    assert float(((seen[ids] - expected) ** 2 / expected).sum()) < 16.27


@triton.jit
def _noise(out, seed, position, SIZE: tl.constexpr):
    token_id = tl.arange(0, SIZE)
    tl.store(out + token_id, _gumbel(tl.load(seed), tl.load(position), token_id))


def noise(seed: int, position: int, device: torch.device) -> Tensor:
    out = torch.empty(2**15, device=device)
    numbers = (torch.tensor([number], device=device) for number in (seed, position))
    _noise[(1,)](out, *numbers, SIZE=2**15)
    return out.cpu().double()


def test_noise_is_gumbels_and_independent(device: torch.device) -> None:
    samples = [noise(seed, position, device) for seed, position in ((1, 5), (1, 6), (2, 5), (-(2**63), 5))]
    size = len(samples[0])
    for x in samples:
        cdf = (-(-x).exp()).exp().sort().values  # of values that follow it: uniform
        steps = torch.arange(1, size + 1) / size
        assert float((cdf - steps).abs().max()) < 1.95 / math.sqrt(size), "Kolmogorov–Smirnov, one in a thousand"
    normed = torch.stack([(x - x.mean()) / x.std() for x in samples])
    correlation = (normed @ normed.T / size).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 5 / math.sqrt(size)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, True),
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}, True),
        ({"temperature": 0.0, "typical_p": 0.5}, True),
        ({"typical_p": 0.5}, False),
        ({"logit_bias": {1: 2.0}}, False),
        ({"bad_words_ids": ((1,),)}, False),
        ({"allowed_token_ids": (1,)}, False),
        ({"min_tokens": 2}, False),
        ({"logprobs": 0}, False),
        ({"prompt_logprobs": 0}, False),
        ({"grammar": Grammar("json_object", "")}, False),
    ],
)
def test_which_requests_the_device_can_do(wish: dict[str, object], expected: bool, device: torch.device) -> None:
    params = SamplingParams(**wish)  # type: ignore[arg-type]
    assert on_device(params) is expected
    state = DeviceSampling(1, 1, 16, device)
    assert state.add(0, params, 0, [1], 1) is expected
    token = choose(state, torch.zeros(1, 16, device=device), [0])[0]
    assert (token >= 0) is expected, "what the host must choose comes out as -1"


def test_room_for_counts_is_bounded_and_given_back(device: torch.device) -> None:
    params = SamplingParams(frequency_penalty=1.0)
    state = DeviceSampling(2, 3, 16, device, max_counted=1)
    num_bytes = state.num_bytes
    assert state.stage([-1], [0], 1).counts is None
    assert state.add(0, params, 0, [1], 1)
    assert not state.add(1, params, 0, [1], 1)
    state.remove(1)
    state.remove(0)
    assert state.add(2, params, 0, [1], 1)
    assert state.stage([2], [1], 1).counts is not None
    assert state.num_bytes == num_bytes, "counts are in the figure before they are allocated"


def test_a_step_says_what_its_rows_need(device: torch.device) -> None:
    wishes = (
        {"temperature": 0.0, "top_k": 3},
        {"min_p": 0.1},
        {"top_k": 3},
        {"temperature": 0.0, "presence_penalty": 1.0},
    )
    state = prepare([SamplingParams(**wish) for wish in wishes], 16, device, max_rows=4)
    found = [(d.drawn, d.filtered, d.counts is not None) for d in (state.stage([slot], [3], 2) for slot in range(4))]
    assert found == [(False, False, False), (True, False, False), (True, True, False), (False, False, True)]


def test_the_host_tells_which_tokens_it_chose(device: torch.device) -> None:
    state = DeviceSampling(2, 4, 16, device)
    state.set_last([3, 1], [7, 9])
    assert state.last_tokens.tolist() == [0, 9, 0, 7]
