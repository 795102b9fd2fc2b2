"""The kernels of ``sample.py``, where the theory stands.

``source`` is a tuple: logits, their stride, the size of the vocabulary, and of ``DeviceDraws`` integers, reals and
counts. The functions that score a token must give the same bits wherever they are called, or totals would not agree:
launches leave out fused multiply-add.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Columns of DeviceDraws.integers and .reals.
SEED, POSITION, SLOT, COUNT_ROW, TOP_K = range(5)
TEMPERATURE, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY = range(6)
NUM_INTEGERS, NUM_REALS = 5, 6

CHUNK = tl.constexpr(2048)
"""Tokens of a program."""
PIVOTS = tl.constexpr(16)
ROUNDS = tl.constexpr(2)
"""Of pivots, in which all of a row's programs share; further ones, seldom needed, are one program's."""
LANES = tl.constexpr(256)
"""Tokens that a program looks at at once, with all pivots."""
CANDIDATES = tl.constexpr(1024)
"""Tokens that the last part of a search looks at, at most."""

_SEED, _POSITION, _SLOT, _COUNT_ROW, _TOP_K, _INTEGERS = (tl.constexpr(number) for number in range(NUM_INTEGERS + 1))
_TEMPERATURE, _TOP_P, _MIN_P, _REPETITION, _PRESENCE, _FREQUENCY, _REALS = (
    tl.constexpr(number) for number in range(NUM_REALS + 1)
)
_NOWHERE = tl.constexpr(-(2**63))  # below all ranks
_LOWEST = tl.constexpr(-(2**63) + 1)  # no rank is lower
_ABOVE_ALL = tl.constexpr(2**63 - 1)  # no rank is as high; that of what is not finite
_LAST_ID = tl.constexpr(2**31 - 1)
_MASS_OF_ONE = tl.constexpr(2.0**40)


@triton.jit
def _rank(score, token_id):
    """Of float32 scores without NaN; + 0.0 makes one zero of the two."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (token_id ^ _LAST_ID).to(tl.int64)


@triton.jit
def _score_of(rank):
    ordered = (rank >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _mass_of(score):
    return (tl.exp(score) * _MASS_OF_ONE).to(tl.int64)


@triton.jit
def _load(source, row, token_id):
    """Logits of a row as they come, and under its penalties; beyond the vocabulary -inf."""
    logits, stride, vocab_size, integers, reals, counts = source
    there = token_id < vocab_size
    raw = tl.load(logits + row * stride + token_id, there, float("-inf")).to(tl.float32)
    value = raw
    if counts is not None:
        count_row = tl.load(integers + row * _INTEGERS + _COUNT_ROW)
        repetition = tl.load(reals + row * _REALS + _REPETITION).to(tl.float32)
        presence = tl.load(reals + row * _REALS + _PRESENCE).to(tl.float32)
        frequency = tl.load(reals + row * _REALS + _FREQUENCY).to(tl.float32)
        seen = tl.load(counts + count_row * vocab_size + token_id, there & (count_row >= 0), 0)
        repeated = tl.where(value > 0, tl.div_rn(value, repetition), value * repetition)
        value = tl.where(seen > 0, repeated, value)
        times = seen >> 1
        value = tl.where(times > 0, value - (times.to(tl.float32) * frequency + presence), value)
    return raw, value


@triton.jit
def _scores(source, row, token_id, top, temperature):
    """Logits below the highest over the temperature, and their ranks; beyond the vocabulary no rank."""
    _, value = _load(source, row, token_id)
    score = tl.div_rn(value - top, temperature)
    return score, tl.where(token_id < source[2], _rank(score, token_id), _NOWHERE)


@triton.jit
def _wishes(source, row):
    """Top-k, top-p, temperature, and whether the row is drawn from what top-k or top-p keeps."""
    integers, reals = source[3], source[4]
    top_k = tl.load(integers + row * _INTEGERS + _TOP_K)
    top_p = tl.load(reals + row * _REALS + _TOP_P)
    temperature = tl.load(reals + row * _REALS + _TEMPERATURE).to(tl.float32)
    return top_k, top_p, temperature, (temperature > 0) & ((top_k > 0) | (top_p < 1.0))


@triton.jit
def _peak(peaks, row, num_chunks, CHUNKS: tl.constexpr):
    """The highest rank of the row, and whether that is a finite number."""
    chunk = tl.arange(0, CHUNKS)
    peak = tl.max(tl.load(peaks + row * num_chunks + chunk, chunk < num_chunks, _NOWHERE))
    return peak, (peak != _ABOVE_ALL) & (_score_of(peak) > float("-inf"))


@triton.jit
def find_peaks(source, peaks, totals, num_candidates):
    """The highest rank of each chunk; and zeros where the kernels to come add up."""
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    token_id = chunk * CHUNK + tl.arange(0, CHUNK)
    raw, value = _load(source, row, token_id)
    finite = (raw < float("inf")) & (value < float("inf"))
    rank = tl.where(finite, _rank(value, token_id), _ABOVE_ALL)
    tl.store(peaks + row * tl.num_programs(0) + chunk, tl.max(tl.where(token_id < source[2], rank, _NOWHERE)))
    if chunk == 0:
        SIZE: tl.constexpr = ROUNDS * 2 * PIVOTS
        tl.store(totals + row * SIZE + tl.arange(0, SIZE), tl.zeros([SIZE], tl.int64))
        tl.store(num_candidates + row * 2 + tl.arange(0, 2), tl.zeros([2], tl.int32))


@triton.jit
def _tally(source, row, top, temperature, begin, size, pivots):
    """Count and mass of the row's tokens ``begin … begin + size`` whose rank reaches each pivot."""
    sum_counts = tl.zeros([PIVOTS, LANES], tl.int32)
    sum_masses = tl.zeros([PIVOTS, LANES], tl.int64)
    for at in tl.range(0, size, LANES, loop_unroll_factor=2):
        score, rank = _scores(source, row, begin + at + tl.arange(0, LANES), top, temperature)
        reaches = rank[None, :] >= pivots[:, None]
        sum_counts += reaches.to(tl.int32)
        sum_masses += tl.where(reaches, _mass_of(score)[None, :], 0)
    return tl.sum(sum_counts, 1).to(tl.int64), tl.sum(sum_masses, 1)


@triton.jit
def _put(source, row, top, temperature, token_id, low, high, candidates, num_candidates):
    """Copy those of ``token_id`` out whose rank is in ``low … high``, in any order."""
    _, rank = _scores(source, row, token_id, top, temperature)
    inside = (rank >= low) & (rank < high)
    place = tl.atomic_add(num_candidates + token_id * 0, 1, inside)
    tl.store(candidates + row * CANDIDATES + place, rank, inside)


@triton.jit
def _first_pivots():
    """1/8, 4/8, 9/8, … below the highest score; the last is below all."""
    step = tl.arange(0, PIVOTS) + 1
    score = (step * step).to(tl.float32) * -0.125
    return tl.where(step < PIVOTS, _rank(score, step * 0 + _LAST_ID), _LOWEST)


@triton.jit
def _pivots_between(low, high):
    """``low`` and 15 more above it, evenly; none is more than ``high``."""
    width = (high >> 4) - (low >> 4)
    step = tl.where(width < 2**40, tl.maximum((high - low) // PIVOTS, 1), width)  # so that nothing overflows
    return tl.minimum(low + step * tl.arange(0, PIVOTS).to(tl.int64), high)


@triton.jit
def _confine(pivots, counts, masses, by_count, goal, low, high, count_before, mass_before):
    """The two pivots between which the total reaches the goal: it does at ``low``, and does not yet at ``high``.

    Also what is at and above ``high``, count and mass, and the count between.
    """
    reached = tl.where(by_count, counts, masses) >= goal
    low = tl.max(tl.where(reached, pivots, low))
    high = tl.min(tl.where(reached, high, pivots))
    count_before = tl.max(tl.where(reached, count_before, counts))
    mass_before = tl.max(tl.where(reached, mass_before, masses))
    between = tl.min(tl.where(reached, counts, _ABOVE_ALL)) - count_before
    return low, high, count_before, mass_before, between


@triton.jit
def _share(top_p, mass):
    """The least integer that is no less than ``top_p`` of ``mass``."""
    return tl.minimum(tl.ceil(top_p * mass.to(tl.float64)).to(tl.int64), mass)


@triton.jit
def _bracket(totals, row, top_k, top_p, NUM_ROUNDS: tl.constexpr):
    """After so many rounds: the goal of the first search, and ``_confine``'s answer.

    If all tokens down to ``low`` can be copied out they will be: then a second search finds there what it needs.
    """
    at = totals + row * (ROUNDS * 2 * PIVOTS) + tl.arange(0, PIVOTS)
    counts, masses = tl.load(at), tl.load(at + PIVOTS)
    zero = top_k * 0
    by_count = top_k > 0
    goal = tl.where(by_count, top_k, _share(top_p, tl.max(masses)))
    low, high, count_before, mass_before, between = _confine(
        _first_pivots(), counts, masses, by_count, goal, zero + _LOWEST, zero + _ABOVE_ALL, zero, zero
    )
    if NUM_ROUNDS == 2:  # noqa: SIM102 — one is decided when compiling, the other when running
        if between > CANDIDATES:
            pivots = _pivots_between(low, high)
            counts, masses = tl.load(at + 2 * PIVOTS), tl.load(at + 3 * PIVOTS)
            low, high, count_before, mass_before, between = _confine(
                pivots, counts, masses, by_count, goal, low, high, count_before, mass_before
            )
    all_fit = count_before + between <= CANDIDATES
    high = tl.where(all_fit, _ABOVE_ALL, high)
    between = tl.where(all_fit, count_before + between, between)
    return goal, low, high, tl.where(all_fit, 0, count_before), tl.where(all_fit, 0, mass_before), between


@triton.jit
def add_totals(source, peaks, num_chunks, totals, ROUND: tl.constexpr, CHUNKS: tl.constexpr):
    """Add a chunk's counts and masses to the row's, at the pivots of this round."""
    row = tl.program_id(1).to(tl.int64)
    top_k, top_p, temperature, wanted = _wishes(source, row)
    peak, valid = _peak(peaks, row, num_chunks, CHUNKS)
    if not (wanted & valid):
        return
    pivots = _first_pivots()
    if ROUND > 0:
        _, low, high, _, _, between = _bracket(totals, row, top_k, top_p, ROUND)
        if between <= CANDIDATES:
            return
        pivots = _pivots_between(low, high)
    counts, masses = _tally(source, row, _score_of(peak), temperature, tl.program_id(0) * CHUNK, CHUNK, pivots)
    at = totals + (row * ROUNDS + ROUND) * (2 * PIVOTS) + tl.arange(0, PIVOTS)
    tl.atomic_add(at, counts)
    tl.atomic_add(at + PIVOTS, masses)


@triton.jit
def collect(source, peaks, num_chunks, totals, candidates, num_candidates, CHUNKS: tl.constexpr):
    """Copy the tokens out that the search has come down to, if they are few enough."""
    row = tl.program_id(1).to(tl.int64)
    top_k, top_p, temperature, wanted = _wishes(source, row)
    peak, valid = _peak(peaks, row, num_chunks, CHUNKS)
    if not (wanted & valid):
        return
    _, low, high, _, _, between = _bracket(totals, row, top_k, top_p, ROUNDS)
    if between > CANDIDATES:
        return
    token_id = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    _put(source, row, _score_of(peak), temperature, token_id, low, high, candidates, num_candidates + row * 2)


@triton.jit
def _come_down(
    source, row, top, temperature, by_count, goal, low, high, count_before, mass_before, between, candidates,
    num_candidates,
):  # fmt: skip
    """Search the whole row until what is between is few enough, and copy it out."""
    vocab_size = source[2]
    while between > CANDIDATES:
        pivots = _pivots_between(low, high)
        counts, masses = _tally(source, row, top, temperature, 0, vocab_size, pivots)
        low, high, count_before, mass_before, between = _confine(
            pivots, counts, masses, by_count, goal, low, high, count_before, mass_before
        )
    for at in range(0, vocab_size, CHUNK):
        _put(source, row, top, temperature, at + tl.arange(0, CHUNK), low, high, candidates, num_candidates)
    tl.debug_barrier()
    return low, high, count_before, mass_before, between


@triton.jit
def _settle(rank, mass, by_count, goal, low, high, count_before, mass_before, between):
    """Search among the tokens copied out until one is left: its rank, and the mass of all down to it."""
    count_above, mass_above = count_before, mass_before
    while between > 1:
        pivots = _pivots_between(low, high)
        reaches = rank[None, :] >= pivots[:, None]
        counts = count_above + tl.sum(reaches.to(tl.int32), 1)
        masses = mass_above + tl.sum(tl.where(reaches, mass[None, :], 0), 1)
        low, high, count_before, mass_before, between = _confine(
            pivots, counts, masses, by_count, goal, low, high, count_before, mass_before
        )
    is_last = (rank >= low) & (rank < high)
    return tl.max(tl.where(is_last, rank, _NOWHERE)), mass_before + tl.sum(tl.where(is_last, mass, 0))


@triton.jit
def find_cuts(source, peaks, num_chunks, totals, candidates, num_candidates, cuts, CHUNKS: tl.constexpr):
    """The least rank that top-k and top-p keep."""
    row = tl.program_id(0).to(tl.int64)
    top_k, top_p, temperature, wanted = _wishes(source, row)
    peak, valid = _peak(peaks, row, num_chunks, CHUNKS)
    if not (wanted & valid):
        return
    goal, low, high, count_before, mass_before, between = _bracket(totals, row, top_k, top_p, ROUNDS)
    num_collected = between * (between <= CANDIDATES).to(tl.int64)
    all_collected = (num_collected > 0) & (high == _ABOVE_ALL)
    by_count = top_k > 0
    num_searches = 1 + (by_count & (top_p < 1.0)).to(tl.int32)
    search = 0
    while search < num_searches:
        if num_collected == 0:
            low, high, count_before, mass_before, between = _come_down(
                source, row, _score_of(peak), temperature, by_count, goal, low, high, count_before, mass_before,
                between, candidates, num_candidates + row * 2 + search,
            )  # fmt: skip
            num_collected = between
        index = tl.arange(0, CANDIDATES)
        rank = tl.load(candidates + row * CANDIDATES + index, index < num_collected, _NOWHERE)
        mass = _mass_of(tl.where(index < num_collected, _score_of(rank), float("-inf")))
        low, mass_left = _settle(rank, mass, by_count, goal, low, high, count_before, mass_before, between)
        # Top-p, if it comes after top-k, looks at the k tokens that are left.
        goal, by_count = _share(top_p, mass_left), by_count & (search < 0)
        high, between = high * 0 + _ABOVE_ALL, top_k
        count_before, mass_before = count_before * 0, mass_before * 0
        num_collected = num_collected * all_collected.to(tl.int64)
        search += 1
        tl.debug_barrier()
    tl.store(cuts + row, low)


@triton.jit
def _gumbel(seed, position, token_id):
    """-log(E): E = -log(1 - u), by its series where 1 - u would round."""
    word, _, _, _ = tl.philox(seed, token_id, position.to(tl.int32), 0, 0)
    u = tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    series = u * (1.0 + u * (0.5 + u * (0.33333334 + u * 0.25)))
    return -tl.log(tl.where(u < 0.03125, series, -tl.log(1.0 - u)))


@triton.jit
def draw(source, peaks, num_chunks, cuts, bests, CHUNKS: tl.constexpr):
    """The kept token of each chunk that wins the draw, as the rank of its score plus noise."""
    integers, reals = source[3], source[4]
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    _, _, temperature, is_cut = _wishes(source, row)
    peak, valid = _peak(peaks, row, num_chunks, CHUNKS)
    if not (valid & (temperature > 0)):
        return
    token_id = chunk * CHUNK + tl.arange(0, CHUNK)
    score, rank = _scores(source, row, token_id, _score_of(peak), temperature)
    kept = (score > float("-inf")) & (rank >= tl.load(cuts + row, is_cut, _LOWEST))
    kept &= tl.exp(score).to(tl.float64) >= tl.load(reals + row * _REALS + _MIN_P)
    best = tl.full([], _NOWHERE, tl.int64)
    if tl.max(kept.to(tl.int32)) > 0:
        seed = tl.load(integers + row * _INTEGERS + _SEED)
        position = tl.load(integers + row * _INTEGERS + _POSITION)
        best = tl.max(tl.where(kept, _rank(score + _gumbel(seed, position, token_id), token_id), _NOWHERE))
    tl.store(bests + row * num_chunks + chunk, best)


@triton.jit
def finish(source, peaks, num_chunks, bests, last_tokens, out_ids, CHUNKS: tl.constexpr):
    """The row's token: what wins of all chunks' draws, or without a temperature of all chunks' peaks."""
    integers, reals, counts = source[3], source[4], source[5]
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(reals + row * _REALS + _TEMPERATURE).to(tl.float32)
    rank, valid = _peak(peaks, row, num_chunks, CHUNKS)
    valid &= temperature >= 0
    if temperature > 0:
        rank = _peak(bests, row, num_chunks, CHUNKS)[0]
    token_id = tl.where(valid, (rank & _LAST_ID).to(tl.int32) ^ _LAST_ID, -1)
    tl.store(out_ids + row, token_id)
    slot = tl.load(integers + row * _INTEGERS + _SLOT)
    tl.store(last_tokens + slot, token_id, (slot >= 0) & (temperature >= 0))
    if counts is not None:
        count_row = tl.load(integers + row * _INTEGERS + _COUNT_ROW)
        counted = valid & (count_row >= 0)
        at = counts + count_row * source[2] + token_id
        tl.store(at, tl.load(at, counted, 0) + 2, counted)
