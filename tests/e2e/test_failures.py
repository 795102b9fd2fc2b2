"""What one request does wrong ends that request: a real (tiny) model, a poisoned pool, and faults at named points.

After every fault the others must have the very tokens and log-probabilities that they have alone, every block must be
free or cached, and no number that is not finite may be left where the prefix cache finds it.

Cases FT-07, FT-09, OV-11, NU-01, NU-02, NU-03, CC-06, CC-08, CC-10, CC-13, CC-15.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.test_independence import PRECISIONS as ALL_PRECISIONS
from tests.e2e.test_independence import VOCAB, Alone, House, Model, load_as, request, tokens
from tokenmill.core.errors import NumericalError, OutOfMemory, PoisonRequest
from tokenmill.core.request import Progress, Request
from tokenmill.engine.faults import Fault, armed
from tokenmill.engine.kvcache import prefix
from tokenmill.runtime.bisection import MAX_BARREN
from tokenmill.testing import checkpoints

POISON = VOCAB - 1
PRECISIONS = {name: ALL_PRECISIONS[name] for name in ("reference", "int8", "int8-kv8")}


@pytest.fixture(scope="module", params=PRECISIONS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LOGIT_STD", 2.4)
        folder: Path = checkpoints.make_checkpoint(
            tmp_path_factory.mktemp("failures"), "qwen2", vocab_size=VOCAB, max_context=256, intermediate_size=96,
            tokenizer=False,
        )  # fmt: skip
    return load_as(folder, PRECISIONS[request.param])


@pytest.fixture(scope="module")
def alone(model: Model) -> Alone:
    return Alone(model)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clean(count: int, seed: int) -> tuple[int, ...]:
    """A prompt without the token that faults follow."""
    return tuple(t for t in tokens(count + 20, seed) if t != POISON)[:count]


def company(count: int = 7, new: int = 6) -> list[Request]:
    return [request(i, clean(5 + 9 * i, i), new, logit_bias={POISON: -100.0}) for i in range(count)]


def with_poison(number: int = 50, new: int = 6, **wishes: Any) -> Request:
    return request(number, (*clean(20, number), POISON), new, **wishes)


def check_the_others(house: House, alone: Alone, bad: Request, others: Sequence[Request], error: type) -> None:
    assert [failed.request_id for failed in house.failures] == [bad.id]
    assert isinstance(house.failures[0].error, error)
    house.failures.clear()
    alone.check(house, others)
    assert house.engine.has_work is False


# ---- exceptions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["worker.step", "worker.sample", "worker.prepare"])
@pytest.mark.parametrize("depth", [1, 2])
def test_ft07_ft09_an_exception_ends_the_request_that_causes_it(
    model: Model, alone: Alone, point: str, depth: int
) -> None:
    """FT-07, FT-09: at any of the points, in company and in chunks, one or two steps in flight."""
    others, bad = company(), with_poison()
    house = House(model, depth=depth, chunk=32)
    with armed(Fault(point, token=POISON)):
        house.run([*others[:3], bad, *others[3:]])
    check_the_others(house, alone, bad, others, PoisonRequest)


def test_an_exception_in_the_middle_of_an_answer(model: Model, alone: Alone) -> None:
    others, bad = company(5, new=12), with_poison(new=12)
    house = House(model)
    with armed(Fault("worker.step", token=POISON, after=5)):
        house.run([*others, bad])
    check_the_others(house, alone, bad, others, PoisonRequest)
    assert len(house.answers[bad.id, 0]) in range(3, 12)


def test_a_fault_that_does_not_come_again_hurts_nobody(model: Model, alone: Alone) -> None:
    requests = company()
    house = House(model, chunk=40)
    with armed(Fault("worker.step", times=1, after=2), Fault("worker.sample", times=1, after=3)):
        house.run(requests)
    alone.check(house, requests)


def test_a_machine_that_computes_nothing_is_not_a_request(model: Model) -> None:
    """Nobody is blamed where nobody can be computed: the engine ends with the exception."""
    house = House(model)
    with armed(Fault("worker.step")), pytest.raises(RuntimeError, match="injected"):
        house.run(company(MAX_BARREN))


def test_nor_are_many_requests_that_fail_one_after_the_other(model: Model) -> None:
    """The same poison, over and over and five at a time, ends itself alone; eight different ones, the engine."""
    house = House(model)
    with armed(Fault("worker.step")):
        for _ in range(3 * MAX_BARREN):
            house.run([with_poison()])
        assert len(house.failures) == 3 * MAX_BARREN
        house.run([request(i, with_poison().prompt_token_ids, 2) for i in range(5)])
        for i in range(MAX_BARREN - 2):
            house.run([request(900 + i, clean(9, 900 + i), 2)])
        with pytest.raises(RuntimeError, match="injected"):
            house.run([request(999, clean(9, 999), 2)])


# ---- memory ------------------------------------------------------------------------------------------------------


def short_of_memory(max_tokens: int) -> Callable[[Any], None]:
    def act(rows: Any) -> None:
        if sum(row.end - row.start for row in rows) > max_tokens:
            raise MemoryError

    return act


@pytest.mark.parametrize("max_tokens", [64, 8, 1])
def test_ov11_a_step_that_finds_no_memory_is_done_in_pieces(model: Model, alone: Alone, max_tokens: int) -> None:
    """OV-11: every allocation beyond so many tokens fails; all answers are the right ones all the same."""
    requests = [*company(4), request(30, clean(40, 30), 4, prompt_logprobs=2)]
    house = House(model)
    with armed(Fault("worker.step", short_of_memory(max_tokens))):
        house.run(requests)
    alone.check(house, requests)


def test_ov11_once_and_for_good(model: Model, alone: Alone) -> None:
    """OV-11: a failure that passes costs nobody; a request that finds none even alone ends with 503."""
    requests = company()
    house = House(model)
    with armed(Fault("worker.step", error="memory", times=1)):
        house.run(requests)
    alone.check(house, requests)
    others, bad = company(), with_poison()
    house = House(model)
    with armed(Fault("worker.step", error="memory", token=POISON)):
        house.run([*others, bad])
    check_the_others(house, alone, bad, others, OutOfMemory)


# ---- numbers -----------------------------------------------------------------------------------------------------


def spoil(values: Callable[[torch.Tensor], None], at: int) -> Callable[[Any], None]:
    """Change the logits of the row that has the poison, once it has ``at`` tokens."""

    def act(about: Any) -> None:
        rows, logits = about
        for i, row in enumerate(rows):
            if POISON in row.entry.token_ids and len(row.entry.token_ids) >= at:
                values(logits[i])

    return act


DEAD: dict[str, Callable[[torch.Tensor], Any]] = {
    "one nan": lambda row: row[7].fill_(math.nan),
    "all nan": lambda row: row.fill_(math.nan),
    "all -inf": lambda row: row.fill_(-math.inf),
    "one +inf": lambda row: row[7].fill_(math.inf),
}


@pytest.mark.parametrize("kind", DEAD)
def test_nu01_nu02_a_row_without_numbers_fails_alone(model: Model, alone: Alone, kind: str) -> None:
    """NU-01, NU-02: only that request fails; none of its blocks can be found again; batchmates are exact."""
    others, bad = company(), with_poison(new=8)
    house = House(model, block_size=16)
    with armed(Fault("worker.logits", spoil(DEAD[kind], 24))):
        house.run([*others, bad])
    check_the_others(house, alone, bad, others, NumericalError)
    again = request(60, bad.prompt_token_ids, 3)
    house.run([again])
    assert house.records[again.id].cached_tokens == 0
    alone.check(house, [again])


def test_nu02_all_but_one_masked_draws_that_one(model: Model) -> None:
    def values(row: torch.Tensor) -> None:
        kept = row[11].clone()
        row.fill_(-math.inf)
        row[11] = kept

    req = with_poison(new=4)
    house = House(model)
    with armed(Fault("worker.logits", spoil(values, 0))):
        house.run([req])
    assert [token for token, _ in house.answers[req.id, 0]] == [11] * 4


@pytest.mark.parametrize("depth", [1, 2])
def test_nu03_a_poisoned_cached_block_is_found_out_and_dropped(model: Model, alone: Alone, depth: int) -> None:
    """NU-03: NaN in a cached block; who hits it is computed anew, exactly, and the block is never hit again."""
    house = House(model, block_size=16, depth=depth)
    prompt = clean(60, 5)
    first, second, third = (request(number, (*prompt, number), 5) for number in (70, 71, 72))
    house.run([first])
    house.worker.model.poison([next(iter(house.cache.pool.index.values()))])
    others = company(3)
    house.run([second, *others])
    assert not house.failures
    alone.check(house, [second, *others])
    house.run([third])
    alone.check(house, [third])
    assert house.records[third.id].cached_tokens == 48


# ---- nothing of one request is seen in another -------------------------------------------------------------------

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"logprobs": None},
    "greedy": {"temperature": 0.0, "logprobs": None},
    "allowed": {"allowed_token_ids": tuple(range(40, 60))},
    "bias": {"logit_bias": {5: 30.0, 6: -100.0}},
    "penalties": {"repetition_penalty": 1.8, "frequency_penalty": 1.5, "presence_penalty": -1.0},
    "min_tokens": {"min_tokens": 4},
    "words": {"bad_words_ids": ((3,), (4, 5))},
    "filters": {"top_k": 4, "top_p": 0.7, "min_p": 0.1},
}


def featured(number: int, name: str, length: int, new: int = 5) -> Request:
    return request(number, clean(length, 400 + number), new, **{"temperature": 1.0, **FEATURES[name]})


class TokensAlone:
    """The tokens of a request by itself, also where no log-probabilities were asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[str, list[int]] = {}

    def __call__(self, req: Request) -> list[int]:
        key = repr((req.prompt_token_ids, req.params, req.seed, req.max_new_tokens))
        if key not in self._known:
            house = TokenHouse(self._model, num_blocks=16)
            house.run([req])
            self._known[key] = house.tokens[req.id, 0]
        return self._known[key]


class TokenHouse(House):
    """Collects tokens only."""

    def _step(self) -> None:
        if not hasattr(self, "tokens"):
            self.tokens: dict[tuple[str, int], list[int]] = {}
        self.clock.advance(0.001)
        events = self.engine.step()
        self.scheduler.check()
        for request_id, index, new, _, _ in events.tokens:
            self.tokens.setdefault((request_id, index), []).extend(new)
        self.records |= {record.request_id: record for record in events.finished}


def test_cc08_slots_used_again_carry_nothing_over(model: Model) -> None:
    """CC-08: plain requests between others with every kind of state, in many orders, through three slots."""
    reference = TokensAlone(model)
    rng = random.Random(8)
    for _ in range(2):
        names = [name for name in FEATURES for _ in range(2)] + ["plain"] * 8
        rng.shuffle(names)
        requests = [featured(i, name, 4 + i % 9, 2 + i % 4) for i, name in enumerate(names)]
        house = TokenHouse(model, max_seqs=3, depth=rng.choice((1, 2)))
        house.run(requests)
        for req in requests:
            assert house.tokens[req.id, 0] == reference(req), req.id


def test_cc13_features_in_pairs(model: Model) -> None:
    """CC-13: every two of chunks, shared prefixes, preemption, aborts of others, choices and the sampling stages."""
    reference = TokensAlone(model)
    rng = random.Random(13)
    weather = ("chunk", "prefix", "preempt", "depth", "tight")
    for a, b in itertools.combinations(weather, 2):
        chosen = {a, b}
        base = clean(34, 13) if "prefix" in chosen else ()
        requests = [
            request(i, (*base, *clean(6 + i, 900 + i)), 5, **{"temperature": 1.0, **wish})
            for i, wish in enumerate(FEATURES.values())
        ]
        house = TokenHouse(
            model,
            chunk=7 if "chunk" in chosen else 512,
            depth=2 if "depth" in chosen else 1,
            num_blocks=12 if "tight" in chosen else 0,
        )

        def disturb(step: int, house: House = house, on: bool = "preempt" in chosen) -> None:
            running = house.scheduler.running
            if on and running and step % 3 == 1:
                house.scheduler.preempt(rng.choice(running), house.clock.now())

        house.run(requests, disturb=disturb)
        for req in requests:
            assert house.tokens[req.id, 0] == reference(req), (a, b, req.id)


def test_cc15_mutated_arrivals_and_cancels(model: Model) -> None:
    """CC-15: bursts, gaps, cancels a few steps later and retries; whoever is not cancelled gets its tokens, exactly."""
    reference = TokensAlone(model)
    for seed in range(2):
        rng = random.Random(seed)
        names = [rng.choice(list(FEATURES)) for _ in range(16)]
        requests = [
            featured(100 * seed + i, name, rng.randint(2, 40), rng.randint(2, 6)) for i, name in enumerate(names)
        ]
        arrivals = [rng.choice((0, 0, 4, rng.randrange(12))) for _ in requests]
        cancelled = {
            req.id: when + rng.randrange(4) for req, when in zip(requests, arrivals, strict=True) if rng.random() < 0.3
        }
        house = TokenHouse(model, max_seqs=6, num_blocks=24, depth=1 + seed % 2, chunk=48)

        def disturb(step: int, house: House = house, cancelled: dict[str, int] = cancelled) -> None:
            for request_id, when in cancelled.items():
                if when == step:
                    house.engine.abort(request_id)

        house.run(requests, arrivals=arrivals, disturb=disturb)
        for req in requests:
            got, right = house.tokens.get((req.id, 0), []), reference(req)
            assert got == right[: len(got)], req.id
            assert req.id in cancelled or got == right, req.id


def test_cc06_a_new_engine_answers_as_the_old_one(model: Model) -> None:
    """CC-06: cold, warm, and in another process's memory: the same answers."""
    requests = company(4)
    first, second = House(model), House(model)
    cold = dict(first.run(requests))
    again = [request(i, req.prompt_token_ids, 6, logit_bias={POISON: -100.0}) for i, req in enumerate(requests)]
    assert cold == dict(second.run(again))
    first.answers.clear()
    assert cold == dict(first.run(again))


def test_cc12_equal_hashes_of_different_prefixes_share_nothing(
    model: Model, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CC-12: hashes of one byte collide all the time; the tokens are compared, and every answer is the right one."""
    full = prefix.chain_hash
    monkeypatch.setattr("tokenmill.engine.kvcache.manager.chain_hash", lambda parent, t: full(parent, t)[:1])
    house = House(model, num_blocks=200, depth=2)
    requests = [request(600 + i, clean(40 + i % 3, 600 + i // 3), 3) for i in range(60)]
    collided = []
    compare = prefix.Prefix.same_as

    def same_as(self: prefix.Prefix, other: prefix.Prefix) -> bool:
        same = compare(self, other)
        if not same:
            collided.append(other)
        return same

    monkeypatch.setattr(prefix.Prefix, "same_as", same_as)
    house.run(requests, arrivals=range(60))
    assert collided, "the test never met a collision"
    assert any(record.cached_tokens for record in house.records.values())
    alone.check(house, requests)


def test_ft09_a_cache_that_cannot_be_asked_is_done_without(model: Model, alone: Alone) -> None:
    requests = [request(700 + i, clean(40, 700), 3) for i in range(3)]
    house = House(model)
    with armed(Fault("kv.lookup")):
        for req in requests:
            house.run([req])
    alone.check(house, requests)
    assert all(record.cached_tokens == 0 for record in house.records.values())


def test_ft06_any_request_goes_on_in_another_engine_exactly(model: Model, alone: Alone) -> None:
    """FT-06: penalties, filters, bias, banned words, log-probabilities; after one token, three and five, in company."""
    requests = [request(800 + i, clean(9 + 4 * i, 800 + i), 6) for i in range(7)]
    for k in (1, 3, 5):
        begun = [
            dataclasses.replace(req, progress=Progress((tuple(token for token, _ in alone(req)[:k]),)))
            for req in requests
        ]
        house = House(model, depth=1 + k % 2)
        house.run([*begun, *company(2)])
        for req in requests:
            assert house.answers[req.id, 0] == alone(req)[k:], (k, req.id)
